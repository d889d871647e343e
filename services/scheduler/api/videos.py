"""Videos of generations that succeeded: their bytes, thumbnails and URLs."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from chorus.common.v1 import video_pb2
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, Violations
from chorus_rpc.limits import MAX_URL_SECONDS
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.scheduler.jobs.states import ENDED, State
from services.scheduler.jobs.store import Job
from services.scheduler.jobs.video_store import Item, VideoStore
from services.scheduler.video_location import SETTING


class Videos:
    """Reads the videos of generations.

    Args:
        find_job: returns the job of a generation id; raises NOT_FOUND.
        url_seconds: lifetime of a URL for requests that state none, in seconds.
    """

    def __init__(
        self, find_job: Callable[[str], Awaitable[Job]], store: VideoStore, url_seconds: int
    ) -> None:
        self._find_job = find_job
        self._store = store
        self._url_seconds = url_seconds

    async def read(
        self, generation_id: str, offset: int = 0, length: int = 0
    ) -> tuple[video_pb2.VideoInfo, AsyncGenerator[bytes, None]]:
        """Returns the header of the video, and the bytes of a range of it.

        Raises WRONG_STATE if no video exists, INVALID_FIELD for a range outside it.
        """
        job = await self._find_succeeded(generation_id)
        video = job.generation.video
        check_range(offset, length, video.size_bytes)
        return video, self._store.read(job.job_id, job.generation.attempts, video, offset, length)

    async def read_thumbnail(self, generation_id: str) -> tuple[video_pb2.ImageInfo, bytes]:
        """Returns the thumbnail of the video. Raises WRONG_STATE, or NOT_FOUND for a video without one."""
        job = await self._find_succeeded(generation_id)
        if not job.generation.video.HasField("thumbnail"):
            raise ChorusError(
                errors.NOT_FOUND,
                f"the video of generation {generation_id!r} has no thumbnail: it could not be made or stored,"
                " or the video is from an earlier version; generate it again for one",
                metadata={"generation": generation_id},
            )
        info = job.generation.video.thumbnail
        chunks = self._store.read(job.job_id, job.generation.attempts, info)
        return info, b"".join([chunk async for chunk in chunks])

    async def make_url(self, generation_id: str, lifetime: Duration | None) -> tuple[str, Timestamp]:
        """Returns a URL of the video, and the time at which it expires.

        Raises INVALID_FIELD for a lifetime outside its bounds, WRONG_STATE if no video exists or the store
        serves no URLs, BLOB_CORRUPT if the video is missing.
        """
        seconds = self._url_seconds if lifetime is None else parse_lifetime(lifetime)
        job = await self._find_succeeded(generation_id)
        attempt = job.generation.attempts
        expire_time = Timestamp(seconds=int(time.time()) + seconds)
        url = await self._store.make_url(job.job_id, attempt, seconds)
        if url is None:
            raise ChorusError(
                errors.WRONG_STATE,
                "this server stores videos in a directory, which has no URLs: read the video by GetVideo, or"
                f" store videos in an object store ({SETTING}=s3://...)",
                metadata={"setting": SETTING},
            )
        if await self._store.find_size(job.job_id, attempt, Item.VIDEO) is None:
            raise ChorusError(
                errors.BLOB_CORRUPT,
                f"the video of generation {generation_id!r} is missing; generate it again",
            )
        return url, expire_time

    async def _find_succeeded(self, generation_id: str) -> Job:
        job = await self._find_job(generation_id)
        if job.state is not State.SUCCEEDED:
            raise ChorusError(
                errors.WRONG_STATE,
                f"generation {generation_id!r} has no video: it is {job.state.name}"
                + ("" if job.state in ENDED else "; watch it until it has succeeded"),
                metadata={"state": job.state.name},
            )
        return job


def check_range(offset: int, length: int, size: int) -> None:
    """Raises INVALID_FIELD for a range that is not within a video.

    Args:
        length: length of the range; 0 means to the end.
        size: size of the video, in bytes.
    """
    violations = Violations()
    if violations.require(
        offset < size, "offset", f"must be below the size of the video, {size} bytes, not {offset}"
    ):
        violations.require(
            length <= size - offset,
            "length",
            f"must be at most {size - offset}, the number of bytes from offset {offset} to the end of the"
            f" video, or 0 for all of these, not {length}",
        )
    violations.raise_if_any()


def parse_lifetime(lifetime: Duration) -> int:
    """Returns the whole seconds of the lifetime of a URL. Raises INVALID_FIELD for one outside its bounds."""
    seconds = lifetime.seconds + lifetime.nanos / 1e9
    if not 1 <= seconds <= MAX_URL_SECONDS:
        raise errors.invalid(
            "lifetime", f"must be 1 second to {MAX_URL_SECONDS} seconds (7 days), not {seconds:g} s"
        )
    return int(seconds)
