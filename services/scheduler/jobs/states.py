"""Life cycle of a job as data: its states, the transitions between them, and the effect of each event."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from chorus.scheduler.v1 import scheduler_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp


class State(IntEnum):
    """State of a job, with its number in the public API."""

    QUEUED = pb.GENERATION_STATE_QUEUED
    WAITING = pb.GENERATION_STATE_WAITING
    RUNNING = pb.GENERATION_STATE_RUNNING
    SUCCEEDED = pb.GENERATION_STATE_SUCCEEDED
    FAILED = pb.GENERATION_STATE_FAILED
    CANCELLED = pb.GENERATION_STATE_CANCELLED


IN_QUEUE = frozenset({State.QUEUED, State.WAITING})
UNFINISHED = IN_QUEUE | {State.RUNNING}
ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

# An ended job keeps its state. A state may follow itself: the queue moved, or another service is unavailable.
TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.QUEUED, State.WAITING, State.RUNNING, State.FAILED, State.CANCELLED}),
    State.WAITING: frozenset({State.WAITING, State.RUNNING, State.FAILED, State.CANCELLED}),
    State.RUNNING: IN_QUEUE | ENDED,
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}

# State that each event leads to; other events do not change it.
_LEADS_TO: Mapping[str, State] = {
    "queued": State.QUEUED,
    "waiting": State.WAITING,
    "paused": State.QUEUED,
    "planned": State.RUNNING,
    "succeeded": State.SUCCEEDED,
    "failed": State.FAILED,
    "cancelled": State.CANCELLED,
}
# Events that do not change the state, by the states in which they can happen. What becomes of the latents may
# be known only after the end.
_HAPPENS_IN: Mapping[str, frozenset[State]] = {
    "started": frozenset({State.RUNNING}),
    "step_completed": frozenset({State.RUNNING}),
    "warning": frozenset({State.RUNNING, State.SUCCEEDED}),
}


class IllegalTransition(ValueError):
    """An event that cannot happen to a job in this state: a programming error."""


def state_after(state: State, event: pb.GenerationEvent) -> State:
    """Returns the state after an event. Raises IllegalTransition if the event cannot happen in `state`."""
    kind = event.WhichOneof("event") or ""
    if state in _HAPPENS_IN.get(kind, ()):
        return state
    following = _LEADS_TO.get(kind)
    if following is None or following not in TRANSITIONS[state]:
        raise IllegalTransition(f"{kind or 'an empty event'} cannot happen to a job that is {state.name}")
    return following


def apply(generation: pb.Generation, event: pb.GenerationEvent) -> None:
    """Applies one event to the view of its generation. The view is the fold of its events.

    Raises IllegalTransition, and does not change the view, if the event cannot happen.
    """
    before = State(generation.state)
    generation.state = state_after(before, event).value
    generation.last_sequence = event.sequence
    kind = event.WhichOneof("event")
    count_time(generation, event.time)
    if kind == "paused":
        generation.ClearField("start_time")
    elif kind in ("queued", "waiting"):
        # A paused job keeps what it has computed.
        if before is State.RUNNING:
            _clear_attempt(generation)
    elif kind == "planned":
        _clear_attempt(generation)
        generation.plan.CopyFrom(event.planned.plan)
        if generation.seed_chosen and event.planned.plan.HasField("seed"):
            generation.spec.seed = event.planned.plan.seed
        generation.attempts += 1
    elif kind == "started":
        generation.start_time.CopyFrom(event.time)
        if event.started.HasField("donor"):
            generation.donor.CopyFrom(event.started.donor)
        generation.steps_completed = max(event.started.reuse_steps, event.started.resumed_step)
        generation.steps_run = event.started.earlier_steps
        generation.denoiser = event.started.denoiser
    elif kind == "step_completed":
        generation.steps_completed = event.step_completed.step.index
        generation.steps_run += 1
    elif kind == "warning":
        generation.warnings.append(event.warning.warning)
    elif kind == "succeeded":
        generation.video.CopyFrom(event.succeeded.video)
        running, waiting = generation.timings.running_seconds, generation.timings.waiting_seconds
        generation.timings.CopyFrom(event.succeeded.timings)
        generation.timings.running_seconds, generation.timings.waiting_seconds = running, waiting
        generation.steps_run = event.succeeded.steps_run
        generation.seconds_saved = event.succeeded.seconds_saved
    elif kind == "failed":
        generation.error.CopyFrom(event.failed.error)
    if _LEADS_TO.get(kind or "") in ENDED:
        generation.end_time.CopyFrom(event.time)


def count_time(generation: pb.Generation, now: Timestamp) -> None:
    """Adds the time since the latest count to the running or the waiting time of a generation, until its end.

    Both together are the time since its acceptance. A clock that is behind that of the latest event, because
    another scheduler recorded it, adds nothing.
    """
    if generation.HasField("end_time"):
        return
    timings = generation.timings
    counted = timings.running_seconds + timings.waiting_seconds
    elapsed = (now.ToNanoseconds() - generation.create_time.ToNanoseconds()) / 1e9
    if generation.HasField("start_time"):
        timings.running_seconds += max(0.0, elapsed - counted)
    else:
        timings.waiting_seconds += max(0.0, elapsed - counted)


def _clear_attempt(generation: pb.Generation) -> None:
    """Clears the results of an earlier attempt, which do not hold for the next one."""
    for field in ("plan", "donor", "start_time", "steps_run", "steps_completed", "warnings", "denoiser"):
        generation.ClearField(field)
