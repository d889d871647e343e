"""Tests that no job is lost or ends twice when services are killed (kill -9) during a run and restarted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from chorus.common.v1 import errors_pb2, plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus.scheduler.v1 import scheduler_pb2_grpc
from chorus_rpc.channels import open_channel

from tests.e2e.calls import ENDED, get, kinds, submit, video, watch_to_end
from tests.stack import NAMES, Stack, running_stack

# Long enough to kill a service during the run, short enough for two slow cores.
STEPS = 30


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("crashes")) as running:
        yield running


@pytest.fixture
async def scheduler(stack: Stack) -> AsyncIterator[Any]:
    async with open_channel(stack.target) as channel:
        yield scheduler_pb2_grpc.SchedulerServiceStub(channel)


async def wait_for_event(scheduler: Any, generation_id: str, kind: str) -> int:
    """Waits for the first event of a kind; returns its sequence number."""
    async for reply in scheduler.WatchGeneration(
        pb.WatchGenerationRequest(generation_id=generation_id), timeout=60
    ):
        if reply.event.WhichOneof("event") == kind:
            return int(reply.event.sequence)
    raise AssertionError(f"the generation ended without {kind}")


@pytest.mark.parametrize("victim", NAMES)
async def test_kill_9_loses_no_job(scheduler: Any, stack: Stack, victim: str) -> None:
    prompts = [
        f"a {color} square moving {direction}"
        for color, direction in (("red", "up"), ("blue", "left"), ("white", "down"))
    ]
    jobs = [
        await submit(scheduler, prompt, steps=STEPS, reuse=plan_pb2.REUSE_POLICY_OFF, seed=n)
        for n, prompt in enumerate(prompts)
    ]
    await wait_for_event(scheduler, jobs[0].generation_id, "step_completed")
    stack[victim].kill()
    stack[victim].start()
    for job in jobs:
        events = await watch_to_end(scheduler, job.generation_id)
        sequences = [event.sequence for event in events]
        assert sequences == list(range(1, len(events) + 1))
        ends = [kind for kind in kinds(events) if kind in ("succeeded", "failed", "cancelled")]
        assert ends == ["succeeded"], f"{kinds(events)}\n{stack.logs()}"
        ended = await get(scheduler, job.generation_id)
        assert ended.state == pb.GENERATION_STATE_SUCCEEDED
        header, data = await video(scheduler, job.generation_id)
        assert header.header.size_bytes == len(data)


def steps(events: list[pb.GenerationEvent]) -> list[int]:
    return [event.step_completed.step.index for event in events if event.HasField("step_completed")]


async def test_run_continues_where_a_killed_denoiser_stopped(scheduler: Any, stack: Stack) -> None:
    spec: dict[str, Any] = {"steps": STEPS, "reuse": plan_pb2.REUSE_POLICY_OFF, "no_store": True, "seed": 5}
    whole = await submit(scheduler, "a red square moving up", **spec)
    await watch_to_end(scheduler, whole.generation_id)
    job = await submit(scheduler, "a red square moving up", **spec)
    await wait_for_event(scheduler, job.generation_id, "step_completed")
    stack["denoiser"].kill()
    stack["denoiser"].start()
    events = await watch_to_end(scheduler, job.generation_id)
    assert kinds(events)[-1] == "succeeded", f"{kinds(events)}\n{stack.logs()}"
    assert steps(events) == list(range(1, STEPS + 1)), "no step that was reported is computed again"
    [first, second] = [event.started for event in events if event.HasField("started")]
    assert (first.resumed_step, second.resumed_step) == (0, second.earlier_steps)
    assert second.resumed_step > 0
    assert (await video(scheduler, job.generation_id))[1] == (await video(scheduler, whole.generation_id))[1]


async def test_long_run_gives_way_to_an_urgent_one(scheduler: Any) -> None:
    spec: dict[str, Any] = {"steps": STEPS, "reuse": plan_pb2.REUSE_POLICY_OFF, "no_store": True, "seed": 6}
    whole = await submit(scheduler, "a blue square moving up", **spec)
    await watch_to_end(scheduler, whole.generation_id)
    long = await submit(scheduler, "a blue square moving up", **spec)
    await wait_for_event(scheduler, long.generation_id, "step_completed")
    urgent = await submit(
        scheduler,
        "a white circle",
        steps=1,
        priority=pb.PRIORITY_HIGH,
        reuse=plan_pb2.REUSE_POLICY_OFF,
        no_store=True,
    )
    urgent_events = await watch_to_end(scheduler, urgent.generation_id)
    events = await watch_to_end(scheduler, long.generation_id)
    assert kinds(urgent_events)[-1] == kinds(events)[-1] == "succeeded"
    assert urgent_events[-1].sequence == len(urgent_events)
    assert "paused" in kinds(events)
    assert steps(events) == list(range(1, STEPS + 1))
    assert urgent_events[-1].time.ToNanoseconds() < events[-1].time.ToNanoseconds()
    assert (await video(scheduler, long.generation_id))[1] == (await video(scheduler, whole.generation_id))[1]


async def test_generation_without_the_cache_succeeds_with_a_warning(scheduler: Any, stack: Stack) -> None:
    stack["cache"].kill()
    try:
        job = await submit(scheduler, "a yellow circle")
        events = await watch_to_end(scheduler, job.generation_id)
    finally:
        stack["cache"].start()
    # The warning about the admission may come before or after the success.
    assert "succeeded" in kinds(events)[-2:]
    ended = await get(scheduler, job.generation_id)
    assert [r.code for r in ended.plan.reasons] == [plan_pb2.PLAN_REASON_CODE_CACHE_UNAVAILABLE]
    assert {w.metadata["service"] for w in ended.warnings} == {"cache"}


@pytest.mark.parametrize("victim", ["embedder", "denoiser"])
async def test_job_waits_for_an_unavailable_service(scheduler: Any, stack: Stack, victim: str) -> None:
    stack[victim].kill()
    try:
        job = await submit(scheduler, f"a green triangle while the {victim} is away")
        await wait_for_event(scheduler, job.generation_id, "waiting")
        waiting = await get(scheduler, job.generation_id)
        assert waiting.state == pb.GENERATION_STATE_WAITING
    finally:
        stack[victim].start()
    events = await watch_to_end(scheduler, job.generation_id)
    causes = [event.waiting.cause for event in events if event.HasField("waiting")]
    assert causes[0].reason == errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert causes[0].metadata["service"] == victim
    assert kinds(events)[-1] == "succeeded"


async def test_deadline_ends_a_waiting_job(scheduler: Any, stack: Stack) -> None:
    from google.protobuf.timestamp_pb2 import Timestamp

    deadline = Timestamp()
    deadline.GetCurrentTime()
    deadline.seconds += 3
    stack["denoiser"].kill()
    try:
        job = await submit(scheduler, "a purple circle that comes too late", deadline=deadline)
        events = await watch_to_end(scheduler, job.generation_id)
    finally:
        stack["denoiser"].start()
    assert kinds(events)[-1] == "failed"
    assert events[-1].failed.error.reason == errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED


async def test_cancel_stops_a_running_generation(scheduler: Any) -> None:
    job = await submit(
        scheduler, "a red circle that is not wanted", steps=STEPS, reuse=plan_pb2.REUSE_POLICY_OFF
    )
    await wait_for_event(scheduler, job.generation_id, "step_completed")
    await scheduler.CancelGeneration(pb.CancelGenerationRequest(generation_id=job.generation_id), timeout=10)
    events = await watch_to_end(scheduler, job.generation_id)
    assert kinds(events)[-1] == "cancelled"
    assert kinds(events).count("step_completed") < STEPS
    assert (await get(scheduler, job.generation_id)).state in ENDED
