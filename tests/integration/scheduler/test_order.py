"""Tests the order in which waiting generations start: priority, then expected work, as a client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

from tests.integration.scheduler.world import World, check_sequence

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with World(tmp_path_factory.mktemp("order")) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


async def occupy(world: World) -> pb.Generation:
    """Submits a generation that holds the denoiser until the test sets `go`."""
    world.denoiser.pause_before = 1
    job = await world.submit("occupies the denoiser", priority=pb.PRIORITY_HIGH)  # gives way to none
    await world.events(job, until="started")
    world.denoiser.pause_before = None
    return job


async def until_positions(world: World, jobs: list[pb.Generation], expected: list[int]) -> None:
    """Waits until the jobs are at these places of the queue."""
    async with asyncio.timeout(20):
        while [(await world.get(job)).queue_position for job in jobs] != expected:
            pass


async def test_priority_and_expected_work_decide_the_order(world: World) -> None:
    first = await occupy(world)
    long = await world.submit("long", steps=8)
    short = await world.submit("short", steps=1)
    low = await world.submit("low", steps=1, priority=pb.PRIORITY_LOW)
    high = await world.submit("high", steps=8, priority=pb.PRIORITY_HIGH)
    assert (await world.get(long)).spec.priority == pb.PRIORITY_NORMAL, "the default is filled in"
    waiting = [high, short, long, low]
    await until_positions(world, waiting, [1, 2, 3, 4])
    world.denoiser.go.set()
    for job in (first, *waiting):
        check_sequence(await world.events(job))
    started = [request.generation_id for request in world.denoiser.requests]
    assert started == [job.generation_id for job in (first, *waiting)]


async def test_expected_hit_starts_before_a_miss(world: World) -> None:
    """The hit takes three of four steps from a donor; both are planned while they wait."""
    first = await occupy(world)
    miss = await world.submit("a blue square", reuse=plan_pb2.REUSE_POLICY_OFF)
    world.cache.hold(0.9995, 1, 2, 3)
    hit = await world.submit("a red car")
    await until_positions(world, [hit, miss], [1, 2])
    world.denoiser.go.set()
    for job in (first, miss, hit):
        await world.events(job)
    started = [request.generation_id for request in world.denoiser.requests]
    assert started == [job.generation_id for job in (first, hit, miss)]


async def test_identical_requests_run_one_after_the_other(tmp_path: Path) -> None:
    """With four runs at once: the later ones find the first one's result in the cache."""
    async with World(tmp_path, {"CHORUS_SCHEDULER_CONCURRENCY": "4"}) as world:
        world.denoiser.pause_before = 1
        same = [await world.submit("a red car", seed=7, steps=2) for _ in range(3)]
        other = await world.submit("a red car", seed=8, steps=2)
        unseeded = await world.submit("a red car", steps=2)
        for job in (same[0], other, unseeded):
            await world.events(job, until="started")
        assert [(await world.get(job)).queue_position for job in same] == [0, 1, 2]
        # The end of the first, even without a result, lets the next one start.
        await world.cancel(same[0])
        await world.events(same[1], until="started")
        assert (await world.get(same[2])).queue_position == 1
        world.denoiser.go.set()
        for job in (*same[1:], other, unseeded):
            check_sequence(await world.events(job))
        assert world.denoiser.max_running == 3
