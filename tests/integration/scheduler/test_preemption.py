"""Tests of runs that give way to urgent generations, and of runs that continue after an interruption."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from chorus.scheduler.v1 import scheduler_pb2 as pb

from tests.integration.scheduler.fakes import VIDEO
from tests.integration.scheduler.world import World, check_sequence, kinds

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEPS = 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    settings = {"CHORUS_SCHEDULER_RETRY_SECONDS": "0.2"}
    async with World(tmp_path_factory.mktemp("preemption"), settings) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


async def run_to_step(world: World, step: int, prompt: str = "long", **spec: Any) -> pb.Generation:
    """Submits a generation, which waits on the denoiser after a step until the test sets `go`."""
    world.denoiser.pause_before = step
    job = await world.submit(prompt, steps=STEPS, **spec)
    events = await world.events(job, until="started")
    while (await world.get(job)).steps_completed < step:
        events += await world.events(job, after=events[-1].sequence, until="step_completed")
    return job


async def until_pause_is_requested(world: World, job: pb.Generation) -> None:
    """Waits until the scheduler has requested that a run pauses."""
    async with asyncio.timeout(20):
        await world.denoiser.pausable[job.generation_id].wait()


def started(events: list[pb.GenerationEvent]) -> list[pb.StartedEvent]:
    return [event.started for event in events if event.HasField("started")]


def steps(events: list[pb.GenerationEvent]) -> list[int]:
    return [event.step_completed.step.index for event in events if event.HasField("step_completed")]


async def test_urgent_generation_runs_between_two_steps_of_a_long_one(world: World) -> None:
    long = await run_to_step(world, 2)
    urgent = await world.submit("urgent", steps=1, priority=pb.PRIORITY_HIGH)
    await until_pause_is_requested(world, long)
    world.denoiser.go.set()
    urgent_events, events = await world.events(urgent), await world.events(long)
    check_sequence(urgent_events)
    check_sequence(events)
    order = [request.generation_id for request in world.denoiser.requests]
    assert order == [long.generation_id, urgent.generation_id, long.generation_id]
    # The urgent one waited for one step, and no step was computed twice.
    assert steps(events) == list(range(1, STEPS + 1))
    [first, second] = started(events)
    assert (first.resumed_step, first.earlier_steps) == (0, 0)
    assert (second.resumed_step, second.earlier_steps, second.attempt) == (3, 3, 2)
    at = kinds(events).index("paused")
    assert kinds(events)[at - 1] == "step_completed"
    assert events[at].time.ToNanoseconds() <= urgent_events[-1].time.ToNanoseconds()
    ended = await world.get(long)
    assert (ended.steps_run, ended.attempts, ended.state) == (STEPS, 2, pb.GENERATION_STATE_SUCCEEDED)
    assert ended.timings.denoise_seconds == pytest.approx(0.2 * STEPS)
    assert (await world.video(long))[1] == VIDEO


async def test_paused_generation_shows_what_it_has_computed_and_can_be_cancelled(world: World) -> None:
    long = await run_to_step(world, 2)
    urgent = await world.submit("urgent", steps=1, priority=pb.PRIORITY_HIGH)
    await until_pause_is_requested(world, long)
    world.denoiser.pause_before = 0  # holds the urgent one before its first step
    world.denoiser.go.set()
    await world.events(long, until="paused")
    world.denoiser.go.clear()
    paused = await world.get(long)
    assert (paused.state, paused.steps_completed) == (pb.GENERATION_STATE_QUEUED, 3)
    assert paused.plan.total_steps == STEPS
    cancelled = await world.cancel(long)
    assert cancelled.state == pb.GENERATION_STATE_CANCELLED
    world.denoiser.go.set()
    check_sequence(await world.events(urgent))
    assert len(world.denoiser.requests) == 2


@pytest.mark.parametrize("priority", [pb.PRIORITY_NORMAL, pb.PRIORITY_LOW])
async def test_run_does_not_give_way_to_its_own_class_or_a_lower_one(
    world: World, priority: pb.Priority.ValueType
) -> None:
    long = await run_to_step(world, 2)
    other = await world.submit("other", steps=1, priority=priority)
    assert (await world.get(other)).queue_position == 1
    world.denoiser.go.set()
    events = await world.events(long)
    assert "paused" not in kinds(events)
    check_sequence(await world.events(other))


async def test_run_continues_after_the_denoiser_was_killed(world: World) -> None:
    job = await run_to_step(world, 5)
    await world.denoiser.die()
    await world.events(job, until="waiting")
    world.denoiser.pause_before = None
    await world.denoiser.start()
    events = await world.events(job)
    check_sequence(events)
    assert steps(events) == list(range(1, STEPS + 1)), "no step is repeated"
    assert [each.resumed_step for each in started(events)] == [0, 5]
    assert (await world.get(job)).steps_run == STEPS


async def test_run_starts_again_if_the_denoiser_rejects_its_state(world: World) -> None:
    job = await run_to_step(world, 5)
    await world.denoiser.die()
    await world.events(job, until="waiting")
    world.denoiser.pause_before = None
    world.denoiser.rejects_resume_points = True
    await world.denoiser.start()
    events = await world.events(job)
    check_sequence(events)
    assert steps(events) == [*range(1, 6), *range(1, STEPS + 1)]
    assert [bool(request.resume_point) for request in world.denoiser.requests] == [False, True, False]
    assert (await world.get(job)).steps_run == STEPS


async def test_without_memory_for_it_runs_neither_give_way_nor_continue(tmp_path: Path) -> None:
    settings = {"CHORUS_SCHEDULER_RESUME_BYTES": "0"}
    async with World(tmp_path, settings) as world:
        long = await run_to_step(world, 2)
        urgent = await world.submit("urgent", steps=1, priority=pb.PRIORITY_HIGH)
        assert (await world.get(urgent)).queue_position == 1
        assert not world.denoiser.pausable
        await world.denoiser.die()
        await world.events(long, until="waiting")
        world.denoiser.pause_before = None
        await world.denoiser.start()
        assert [each.resumed_step for each in started(await world.events(long))] == [0, 0]
