"""The video object of the API, built from a generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from chorus_client import Generation
from pydantic import BaseModel, ConfigDict

from services.gateway.videos.identifiers import format_video_id
from services.gateway.videos.mapping import format_seconds
from services.gateway.videos.progress import Status, count_progress, estimate_eta, find_status


class _Object(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class VideoError(_Object):
    """Why a video failed."""

    code: str
    """Reason in lower case, or "cancelled"."""
    message: str


class Report(_Object):
    """What a user found wrong with a video."""

    problem: str
    """Such as `donor_visible`; `unknown` for a problem that is newer than the gateway."""
    comment: str
    created_at: int


class Details(_Object):
    """What Chorus knows about a video, beyond the OpenAI API."""

    queue_position: int
    """Position in the queue, 1 is next; 0 if it does not wait there."""
    eta_seconds: float | None
    """Estimated seconds until the video is ready; null if unknown."""
    waiting_for: str | None
    """Why a video that is not complete makes no progress now: a service, or its turn."""
    decision: Literal["exact", "hit", "miss"] | None
    """Whether it repeats an earlier video, reuses latents of one, or computes every step; null before the
    plan."""
    donor_id: str | None
    """Video whose latents are reused."""
    score: float | None
    """Similarity of the two prompts, −1 to 1."""
    edit: str | None
    """Kind of edit from the donor's prompt to this one."""
    steps_run: int
    total_steps: int | None
    seconds_saved: float | None
    """Time saved against computing every step, once the video is complete."""
    reasons: list[str]
    """Why the plan is as it is."""
    trace_id: str | None
    seed: int
    output_index: int
    """Number of the video among those of its request, from 1."""
    output_count: int
    outputs: list[str]
    """Ids of all videos of the request; in the answer to its creation only."""
    media_size: str | None
    """Width and height of the encoded video, which may be enlarged for display; null before it is
    complete."""
    metadata: dict[str, str]
    """Labels of the video."""
    warnings: list[str]
    """Fields that were not met exactly, and conditions that prevented reuse."""
    report: Report | None
    """What a user found wrong with the video, by POST /v1/videos/{video_id}/report."""


class VideoObject(_Object):
    """A video, from its acceptance on."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int
    """Percentage of the work that is done: steps, then decoding."""
    created_at: int
    """Unix seconds, as all times."""
    completed_at: int | None
    expires_at: int | None
    """Always null: how long the server keeps a video depends on its settings and the number of later ones."""
    seconds: str
    """Length of the video as text."""
    size: str
    """Width and height of the request."""
    prompt: str
    quality: Literal["standard"] = "standard"
    remixed_from_video_id: str | None
    """Video that the request named as its donor."""
    error: VideoError | None
    url: str | None
    """Presigned URL of the file, if the server redirects downloads."""
    chorus: Details


def build_video(
    generation: Generation,
    fps: float,
    *,
    outputs: Sequence[Generation] = (),
    warnings: Sequence[str] = (),
    url: str | None = None,
) -> VideoObject:
    """Returns the object of a generation.

    Args:
        fps: frames per second of its model; 0 if unknown. The encoded video has its own.
        outputs: generations of its request, in the answer to its creation.
        warnings: sentences about its request.
        url: presigned URL.
    """
    spec, video = generation.proto.spec, generation.video
    rate = video.frames_per_second if video is not None else fps
    ended = generation.ended is not None and generation.state == "succeeded"
    donor = spec.donor_generation_id
    return VideoObject(
        id=format_video_id(generation.id),
        model=generation.model,
        status=find_status(generation),
        progress=count_progress(generation),
        created_at=int(generation.created.timestamp()),
        completed_at=int(generation.ended.timestamp()) if ended and generation.ended is not None else None,
        expires_at=None,
        seconds=format_seconds(spec.shape.frames if video is None else video.frames, rate),
        size=f"{spec.shape.width}x{spec.shape.height}",
        prompt=generation.prompt,
        remixed_from_video_id=format_video_id(donor) if donor else None,
        error=_build_error(generation),
        url=url,
        chorus=_build_details(generation, outputs, warnings),
    )


def _build_error(generation: Generation) -> VideoError | None:
    if generation.state == "cancelled":
        return VideoError(code="cancelled", message="the video was cancelled")
    if generation.error is None:
        return None
    return VideoError(code=generation.error.reason.lower(), message=generation.error.message)


def _build_report(generation: Generation) -> Report | None:
    report = generation.report
    if report is None:
        return None
    return Report(problem=report.problem, comment=report.comment, created_at=int(report.time.timestamp()))


def _build_details(generation: Generation, outputs: Sequence[Generation], warnings: Sequence[str]) -> Details:
    plan = generation.plan
    donor = generation.donor or (plan.donor if plan is not None and not generation.done else None)
    eta = estimate_eta(generation)
    return Details(
        queue_position=generation.queue_position,
        eta_seconds=None if eta is None else round(eta, 3),
        waiting_for=_find_wait(generation),
        decision=_find_decision(generation),
        donor_id=format_video_id(donor.generation_id) if donor and donor.generation_id else None,
        score=round(donor.score, 6) if donor else None,
        edit=(plan.edit or None) if plan else None,
        steps_run=generation.steps_run,
        total_steps=plan.total_steps if plan else None,
        seconds_saved=round(generation.seconds_saved, 3) if generation.state == "succeeded" else None,
        reasons=list(plan.reasons) if plan else [],
        trace_id=generation.trace_id or None,
        seed=generation.seed,
        output_index=generation.output_index,
        output_count=generation.output_count,
        outputs=[format_video_id(each.id) for each in outputs],
        media_size=f"{generation.video.width}x{generation.video.height}" if generation.video else None,
        metadata=dict(generation.labels),
        warnings=[*warnings, *(each.message for each in generation.warnings)],
        report=_build_report(generation),
    )


def _find_wait(generation: Generation) -> str | None:
    if generation.state == "waiting":
        return "an unavailable service"
    return "its turn" if generation.state == "queued" else None


def _find_decision(generation: Generation) -> Literal["exact", "hit", "miss"] | None:
    plan = generation.plan
    if plan is None:
        return None
    donor = generation.donor if generation.state == "succeeded" else plan.donor
    if donor is None or plan.reuse_steps == 0:
        return "miss"
    return "exact" if plan.reuse_steps == plan.total_steps else "hit"
