"""Verifies the life cycle of a job: permitted events and their effect on the view."""

from __future__ import annotations

import pytest
from chorus.common.v1 import errors_pb2, latents_pb2, plan_pb2, video_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.jobs.states import (
    ENDED,
    TRANSITIONS,
    UNFINISHED,
    IllegalTransition,
    State,
    apply,
    count_time,
)

EVENTS = {
    "queued": pb.GenerationEvent(queued=pb.QueuedEvent(queue_position=1)),
    "waiting": pb.GenerationEvent(waiting=pb.WaitingEvent()),
    "planned": pb.GenerationEvent(planned=pb.PlannedEvent(plan=plan_pb2.Plan(total_steps=4))),
    "started": pb.GenerationEvent(
        started=pb.StartedEvent(reuse_steps=1, total_steps=4, donor=plan_pb2.DonorRef(entry_id="e"))
    ),
    "step_completed": pb.GenerationEvent(
        step_completed=pb.StepCompletedEvent(step=latents_pb2.StepRef(index=2))
    ),
    "warning": pb.GenerationEvent(warning=pb.WarningEvent(warning=errors_pb2.JobError(message="w"))),
    "succeeded": pb.GenerationEvent(
        succeeded=pb.SucceededEvent(video=video_pb2.VideoInfo(size_bytes=7), steps_run=3)
    ),
    "failed": pb.GenerationEvent(failed=pb.FailedEvent(error=errors_pb2.JobError(message="f"))),
    "cancelled": pb.GenerationEvent(cancelled=pb.CancelledEvent()),
}


def fold(*kinds: str) -> pb.Generation:
    generation = pb.Generation(state=pb.GENERATION_STATE_QUEUED, create_time=Timestamp(seconds=100))
    for sequence, kind in enumerate(kinds, 1):
        event = pb.GenerationEvent()
        event.CopyFrom(EVENTS[kind])
        event.sequence = sequence
        event.time.CopyFrom(Timestamp(seconds=100 + sequence))
        apply(generation, event)
    return generation


@pytest.mark.parametrize(("seed_chosen", "seed"), [(True, 9), (False, 5)])
def test_planned_seed_takes_the_place_of_a_chosen_one(seed_chosen: bool, seed: int) -> None:
    generation = pb.Generation(
        state=pb.GENERATION_STATE_QUEUED, spec=pb.GenerationSpec(seed=5), seed_chosen=seed_chosen
    )
    planned = pb.PlannedEvent(plan=plan_pb2.Plan(total_steps=4, seed=9))
    apply(generation, pb.GenerationEvent(sequence=1, planned=planned))
    assert generation.spec.seed == seed


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=30))
def test_any_sequence_of_events_ends_a_job_at_most_once(kinds: list[str]) -> None:
    generation = pb.Generation(state=pb.GENERATION_STATE_QUEUED)
    ends = 0
    for sequence, kind in enumerate(kinds, 1):
        event = pb.GenerationEvent()
        event.CopyFrom(EVENTS[kind])
        event.sequence = sequence
        before = pb.Generation.FromString(generation.SerializeToString())
        try:
            apply(generation, event)
        except IllegalTransition:
            assert generation == before
            continue
        late_warning = kind == "warning" and before.state == pb.GENERATION_STATE_SUCCEEDED
        assert State(before.state) in UNFINISHED or late_warning
        assert generation.last_sequence == sequence
        ends += State(generation.state) in ENDED and not late_warning
    assert ends <= 1
    assert generation.HasField("end_time") == (ends == 1)


@given(st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.integers(0, 10**12)), max_size=30))
def test_running_and_waiting_time_are_the_time_since_acceptance(steps: list[tuple[str, int]]) -> None:
    generation = pb.Generation(state=pb.GENERATION_STATE_QUEUED, create_time=Timestamp(seconds=100))
    now = 100 * 10**9
    ran = 0
    for kind, nanoseconds in steps:
        event = pb.GenerationEvent()
        event.CopyFrom(EVENTS[kind])
        started, ended = generation.HasField("start_time"), generation.HasField("end_time")
        event.time.FromNanoseconds(now + nanoseconds)
        try:
            apply(generation, event)
        except IllegalTransition:
            continue
        if ended:
            continue
        now += nanoseconds
        ran += nanoseconds if started else 0
        timings = generation.timings
        assert timings.running_seconds == pytest.approx(ran / 1e9, abs=1e-6)
        assert timings.running_seconds + timings.waiting_seconds == pytest.approx(now / 1e9 - 100, abs=1e-6)


def test_run_counts_from_its_start_on_the_denoiser_to_the_end_of_the_attempt() -> None:
    """Events are a second apart; the generation was accepted a second before the first one."""
    waits = fold("queued", "planned", "started", "step_completed", "waiting", "waiting")
    assert (waits.timings.running_seconds, waits.timings.waiting_seconds) == (2.0, 4.0)
    assert not waits.HasField("start_time")
    ended = fold("queued", "planned", "started", "waiting", "planned", "started", "succeeded", "warning")
    assert (ended.timings.running_seconds, ended.timings.waiting_seconds) == (2.0, 5.0)
    assert ended.start_time.seconds == 106


def test_time_goes_on_until_the_end_and_never_back() -> None:
    running = fold("planned", "started")
    count_time(running, Timestamp(seconds=110))
    assert (running.timings.running_seconds, running.timings.waiting_seconds) == (8.0, 2.0)
    count_time(running, Timestamp(seconds=90))
    assert (running.timings.running_seconds, running.timings.waiting_seconds) == (8.0, 2.0)
    ended = fold("planned", "started", "failed")
    count_time(ended, Timestamp(seconds=200))
    assert (ended.timings.running_seconds, ended.timings.waiting_seconds) == (1.0, 2.0)


def test_no_event_follows_an_end() -> None:
    assert all(not TRANSITIONS[state] for state in ENDED)
    for end in ("failed", "cancelled"):
        with pytest.raises(IllegalTransition):
            fold(end, "queued")
    with pytest.raises(IllegalTransition):
        fold("planned", "succeeded", "cancelled")


def test_queued_job_cannot_succeed() -> None:
    for kind in ("succeeded", "started", "step_completed", "warning"):
        with pytest.raises(IllegalTransition):
            fold(kind)


def test_view_of_a_succeeded_job_is_the_fold_of_its_events() -> None:
    view = fold("queued", "planned", "started", "step_completed", "succeeded")
    assert view.state == pb.GENERATION_STATE_SUCCEEDED
    assert (view.attempts, view.steps_run, view.steps_completed) == (1, 3, 2)
    assert view.donor.entry_id == "e"
    assert view.video.size_bytes == 7
    assert view.end_time.seconds == 105
    assert view.last_sequence == 5


def test_new_attempt_clears_the_results_of_the_previous_one() -> None:
    view = fold("planned", "warning", "started", "step_completed", "waiting")
    assert (view.steps_run, view.steps_completed) == (0, 0)
    assert not view.HasField("plan")
    assert not view.HasField("donor")
    assert not view.warnings
    again = fold("planned", "started", "waiting", "planned")
    assert (again.attempts, again.state) == (2, pb.GENERATION_STATE_RUNNING)


@pytest.mark.fault("swallowed-errors")
def test_warning_may_follow_a_success_and_leaves_its_end_time() -> None:
    generation = fold("planned", "succeeded", "warning")
    assert generation.state == pb.GENERATION_STATE_SUCCEEDED
    assert [warning.message for warning in generation.warnings] == ["w"]
    assert (generation.end_time.seconds, generation.last_sequence) == (102, 3)
    for end in ("failed", "cancelled"):
        with pytest.raises(IllegalTransition):
            fold("planned", end, "warning")
