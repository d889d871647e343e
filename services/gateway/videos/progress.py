"""Status, progress and remaining time of a video, from its generation. All functions are pure."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from chorus_client import Generation, Model

Status: TypeAlias = Literal["queued", "in_progress", "completed", "failed"]

# Progress when every step is done and the video is being decoded and stored.
_STEPS_DONE: Final = 95
# Bounds of the time between two polls, in milliseconds.
_SHORTEST_POLL: Final = 250
_LONGEST_POLL: Final = 10_000
_UNKNOWN_POLL: Final = 1_000


def find_status(generation: Generation) -> Status:
    """Returns the status; a generation that was interrupted after its first step stays in progress."""
    if generation.state == "succeeded":
        return "completed"
    if generation.state in ("failed", "cancelled"):
        return "failed"
    if generation.state == "running" or generation.steps_completed > 0:
        return "in_progress"
    return "queued"


def count_progress(generation: Generation) -> int:
    """Returns the percentage, 0 to 100: steps that are done, reused ones among them, then decoding.

    A failed generation keeps the progress that it had.
    """
    if generation.state == "succeeded":
        return 100
    if find_status(generation) == "queued":
        return 0
    total = generation.plan.total_steps if generation.plan is not None else 0
    share = min(generation.steps_completed / total, 1.0) if total else 0.0
    started = generation.started is not None or generation.steps_completed > 0
    return max(int(started), int(_STEPS_DONE * share))


def estimate_eta(generation: Generation, model: Model | None = None) -> float | None:
    """Returns the estimated seconds until the video is ready; None if unknown, 0 once it has ended.

    A run that has computed steps goes on at its pace. Before, the speed of the model counts, if it is given.
    """
    if generation.done:
        return 0.0
    plan = generation.plan
    if generation.state != "running" or plan is None:
        return None
    left = max(0, plan.total_steps - max(generation.steps_completed, plan.reuse_steps))
    if generation.steps_run and generation.timings.running_seconds:
        return left * generation.timings.running_seconds / generation.steps_run
    if model is not None and model.seconds_per_step:
        return left * model.seconds_per_step
    return None


def choose_poll_milliseconds(eta: float | None, queue_position: int) -> int:
    """Returns the time after which a client should ask again: about half of what is left."""
    wished = _UNKNOWN_POLL * max(1, queue_position) if eta is None else round(500 * eta)
    return min(max(wished, _SHORTEST_POLL), _LONGEST_POLL)
