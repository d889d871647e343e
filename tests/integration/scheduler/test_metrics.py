"""Verifies the metrics of a scheduler process: ended generations by decision, and the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from chorus.common.v1 import plan_pb2

from tests.integration.scheduler.fakes import STEPS
from tests.integration.scheduler.world import World
from tests.processes import free_port
from tests.scraping import Scrape, scrape_until


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
async def world(tmp_path: Path, port: int) -> AsyncIterator[World]:
    settings = {"CHORUS_SCHEDULER_METRICS_PORT": str(port), "CHORUS_SCHEDULER_CONCURRENCY": "1"}
    async with World(tmp_path, settings) as world:
        yield world


async def until(port: int, expected: Callable[[Scrape], bool]) -> Scrape:
    return await asyncio.to_thread(scrape_until, port, expected)


async def test_generations_are_counted_by_decision_and_state(world: World, port: int) -> None:
    await world.events(await world.submit())
    world.cache.hold(0.99, *range(1, STEPS + 1))
    await world.events(await world.submit("a red car again"))
    await world.events(await world.submit(reuse=plan_pb2.REUSE_POLICY_OFF))
    await world.cache.die()
    await world.events(await world.submit("a blue car"))
    found = await until(port, lambda seen: seen.value("chorus_generations_total") == 4)
    for decision in ("miss", "hit", "off", "cache_down"):
        labels = {"model": "small", "decision": decision}
        assert found.value("chorus_generations_total", state="succeeded", **labels) == 1, decision
        assert found.value("chorus_generation_seconds_count", **labels) == 1
    assert found.labels("chorus_generations_total") == {"model", "decision", "state"}


async def test_queue_is_shown_while_jobs_wait(world: World, port: int) -> None:
    world.denoiser.pause_before = 1
    jobs = [await world.submit(f"prompt {number}") for number in range(3)]
    await world.events(jobs[0], until="started")
    found = await until(
        port, lambda seen: (seen.value("chorus_running"), seen.value("chorus_queue_depth")) == (1, 2)
    )
    former = found.value("chorus_queue_oldest_seconds")
    assert former > 0
    await until(port, lambda seen: seen.value("chorus_queue_oldest_seconds") > former)

    await world.cancel(jobs[2])
    world.denoiser.go.set()
    for job in jobs[:2]:
        await world.events(job)
    found = await until(port, lambda seen: seen.value("chorus_generations_total") == 3)
    assert found.value("chorus_generations_total", state="succeeded", decision="miss") == 2
    assert found.value("chorus_generations_total", state="cancelled", decision="none") == 1
    assert found.value("chorus_generation_seconds_count") == 2
    await until(
        port,
        lambda seen: (
            seen.value("chorus_running")
            == seen.value("chorus_queue_depth")
            == seen.value("chorus_queue_oldest_seconds")
            == 0
        ),
    )
