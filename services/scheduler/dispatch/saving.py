"""Saves the video of a run, and its thumbnail, before the job succeeds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from chorus.common.v1 import video_pb2
from chorus_rpc import errors
from chorus_rpc.chunks import sha256
from chorus_rpc.errors import ChorusError
from chorus_rpc.limits import MAX_THUMBNAIL_BYTES

from services.runtime.logs import get_logger
from services.scheduler.jobs.passing_faults import PassingFault, wait_out
from services.scheduler.jobs.store import Job
from services.scheduler.jobs.video_store import Item, VideoStore

log = get_logger("saving")


async def save_video(
    videos: VideoStore,
    job: Job,
    info: video_pb2.VideoInfo,
    data: bytes,
    thumbnail: bytes,
    on_first_fault: Callable[[PassingFault], Awaitable[None]],
) -> video_pb2.VideoInfo:
    """Saves a video, which is repeated while a fault may pass, and its thumbnail, which may be lost.

    Returns the description of what was saved. Raises INTERNAL if the video cannot be saved, and as `wait_out`
    does.

    Args:
        thumbnail: the picture that `info` describes; empty if there is none.
    """
    attempt = job.generation.attempts
    try:
        await wait_out(
            lambda: videos.save(job.job_id, attempt, Item.VIDEO, data), job.deadline, on_first=on_first_fault
        )
    except OSError as error:
        raise ChorusError(errors.INTERNAL, f"the video could not be stored: {error.strerror}") from error
    saved = video_pb2.VideoInfo()
    saved.CopyFrom(info)
    if info.HasField("thumbnail") and not await _save_thumbnail(videos, job, info.thumbnail, thumbnail):
        saved.ClearField("thumbnail")
    return saved


async def _save_thumbnail(videos: VideoStore, job: Job, info: video_pb2.ImageInfo, thumbnail: bytes) -> bool:
    """Saves a thumbnail; returns whether it did. A thumbnail that cannot be saved costs no video."""
    if len(thumbnail) > MAX_THUMBNAIL_BYTES or sha256(thumbnail) != info.digest:
        log.warning("thumbnail rejected", size_bytes=len(thumbnail), max_bytes=MAX_THUMBNAIL_BYTES)
        return False
    try:
        await videos.save(job.job_id, job.generation.attempts, Item.THUMBNAIL, thumbnail)
    except (ChorusError, OSError) as error:
        log.warning("thumbnail not saved", error=str(error))
        return False
    return True
