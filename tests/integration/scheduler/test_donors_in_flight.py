"""Tests of generations that wait for a run under way, whose latents they reuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

from tests.integration.scheduler.world import World, check_sequence, kinds

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    settings = {"CHORUS_SCHEDULER_CONCURRENCY": "4", "CHORUS_SCHEDULER_RETRY_SECONDS": "0.2"}
    async with World(tmp_path_factory.mktemp("in flight"), settings) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


async def hold_a_run(world: World, **spec: Any) -> pb.Generation:
    """Submits a generation whose run lasts until the test sets `go`."""
    world.denoiser.pause_before = 1
    job = await world.submit("a red car", **spec)
    await world.events(job, until="started")
    return job


async def until_awaited(world: World, job: pb.Generation, awaited: pb.Generation) -> None:
    """Waits until a generation waits for another one."""
    async with asyncio.timeout(20):
        after = 0
        while True:
            events = await world.events(job, after=after, until="queued")
            if events[-1].queued.awaited_generation_id == awaited.generation_id:
                return
            after = events[-1].sequence


async def test_similar_request_waits_for_a_run_and_reuses_it(world: World) -> None:
    first = await hold_a_run(world)
    second = await world.submit("a red bus")
    await until_awaited(world, second, first)
    assert len(world.denoiser.requests) == 1
    assert (await world.get(second)).state == pb.GENERATION_STATE_QUEUED
    world.cache.hold(0.9992, 1, 2, 3)  # the latents of the first
    world.denoiser.go.set()
    check_sequence(await world.events(first))
    events = await world.events(second)
    check_sequence(events)
    [plan] = [event.planned.plan for event in events if event.HasField("planned")]
    assert plan.reuse_steps > 0
    assert (await world.get(second)).attempts == 1


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_request_whose_donor_never_comes_is_computed(world: World, end: str) -> None:
    first = await hold_a_run(world)
    second = await world.submit("a red bus")
    await until_awaited(world, second, first)
    world.denoiser.pause_before = None
    if end == "cancelled":
        await world.cancel(first)
    else:
        world.denoiser.damage = True
        world.denoiser.go.set()
        assert kinds(await world.events(first))[-1] == "failed"
        world.denoiser.damage = False
    events = await world.events(second)
    check_sequence(events)
    assert kinds(events)[-1] in ("succeeded", "failed")
    assert len(world.denoiser.requests) == 2
    assert world.denoiser.requests[-1].plan.reuse_steps == 0


async def test_request_whose_donor_dies_with_the_denoiser_goes_on(world: World) -> None:
    first = await hold_a_run(world)
    second = await world.submit("a red bus")
    await until_awaited(world, second, first)
    world.denoiser.pause_before = None
    await world.denoiser.die()
    await world.denoiser.start()
    for job in (first, second):
        events = await world.events(job)
        check_sequence(events)
        assert kinds(events)[-1] == "succeeded"


@pytest.mark.parametrize(
    "spec",
    [
        {"reuse": plan_pb2.REUSE_POLICY_OFF},
        {"seed": 5},
        {"steps": 3},
    ],
    ids=["reuse off", "another seed", "another schedule"],
)
async def test_request_that_cannot_reuse_a_run_does_not_wait(world: World, spec: dict[str, Any]) -> None:
    first = await hold_a_run(world, seed=4)
    world.denoiser.pause_before = None
    second = await world.submit("a red bus", **spec)
    check_sequence(await world.events(second))
    assert (await world.get(first)).state == pb.GENERATION_STATE_RUNNING
    world.denoiser.go.set()
    check_sequence(await world.events(first))


@pytest.mark.parametrize("spec", [{"no_store": True}], ids=["not stored"])
async def test_request_does_not_wait_for_a_run_that_leaves_no_latents(
    world: World, spec: dict[str, Any]
) -> None:
    first = await hold_a_run(world, **spec)
    world.denoiser.pause_before = None
    check_sequence(await world.events(await world.submit("a red bus")))
    assert (await world.get(first)).state == pb.GENERATION_STATE_RUNNING


async def test_requests_wait_only_if_the_setting_allows_it(tmp_path: Path) -> None:
    settings = {"CHORUS_SCHEDULER_CONCURRENCY": "2", "CHORUS_SCHEDULER_WAIT_FOR_DONORS": "false"}
    async with World(tmp_path, settings) as world:
        first = await hold_a_run(world)
        world.denoiser.pause_before = None
        check_sequence(await world.events(await world.submit("a red bus")))
        assert (await world.get(first)).state == pb.GENERATION_STATE_RUNNING
