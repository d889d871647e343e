"""Verifies that a peer that accepts connections and never answers is found out once, not by each job."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from chorus.common.v1 import plan_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from tests.integration.scheduler.world import World, check_sequence, kinds
from tests.processes import start_service
from tests.relay import Relay

pytestmark = pytest.mark.fault("silent-dependency")

SHORT = "0.5"


@asynccontextmanager
async def world_behind_relays(
    directory: Path, **settings: str
) -> AsyncIterator[tuple[World, dict[str, Relay]]]:
    """Runs a scheduler whose connections to the embedder and the cache pass through relays."""
    world = World(directory, {})
    async with Relay(world.embedder.port) as embedder, Relay(world.cache.port) as cache:
        world.process.env = {
            **world.process.env,
            "CHORUS_SCHEDULER_EMBEDDER_TARGET": embedder.target,
            "CHORUS_SCHEDULER_CACHE_TARGET": cache.target,
            **settings,
        }
        async with world:
            yield world, {"embedder": embedder, "cache": cache}


async def reasons(world: World, prompts: list[str]) -> list[str]:
    """Runs jobs one after the other; returns the reason why each did without the cache, or ""."""
    found = []
    for prompt in prompts:
        job = await world.submit(prompt)
        events = await world.events(job)
        check_sequence(events)
        assert kinds(events)[-1] == "succeeded"
        [reason] = (await world.get(job)).plan.reasons[:1]
        unavailable = reason.code == plan_pb2.PLAN_REASON_CODE_CACHE_UNAVAILABLE
        found.append(reason.text if unavailable else "")
    return found


async def wait_for_cache(world: World) -> None:
    async with asyncio.timeout(20):
        while (await reasons(world, ["probe"]))[0]:
            pass


async def test_only_one_job_waits_for_a_silent_cache(tmp_path: Path) -> None:
    settings = {"CHORUS_SCHEDULER_LOOKUP_SECONDS": SHORT}
    async with world_behind_relays(tmp_path, **settings) as (world, relays):
        await wait_for_cache(world)
        relays["cache"].freeze()
        first, *later = await reasons(world, ["one", "two", "three", "four", "five"])
        assert "no answer in 0.5 s" in first
        assert "suspended" not in first
        assert all("calls are suspended" in reason for reason in later), later
        assert len([line for line in world.process.tail(500).splitlines() if "calls suspended" in line]) == 1
        relays["cache"].thaw()
        await wait_for_cache(world)
        world.cache.hold(0.9992, 1, 2, 3)
        hit = await world.submit()
        await world.events(hit)
        assert (await world.get(hit)).steps_run == 1


async def test_only_one_job_waits_for_a_stopped_cache_process(tmp_path: Path) -> None:
    stores = {
        "CHORUS_CACHE_MILVUS_URI": str(tmp_path / "milvus.db"),
        "CHORUS_CACHE_BLOB_DIR": str(tmp_path / "blobs"),
        "CHORUS_CACHE_KEYLESS_TENANTS": "acme",
    }
    with start_service("cache", stores, tmp_path) as cache:
        settings = {"CHORUS_SCHEDULER_CACHE_TARGET": cache.target, "CHORUS_SCHEDULER_LOOKUP_SECONDS": "1"}
        async with World(tmp_path, settings) as world:
            await wait_for_cache(world)
            os.kill(cache.pid, signal.SIGSTOP)
            try:
                first, *later = await reasons(world, ["one", "two", "three", "four", "five"])
            finally:
                os.kill(cache.pid, signal.SIGCONT)
            assert "no answer in 1 s" in first
            assert all("calls are suspended" in reason for reason in later), later
            await wait_for_cache(world)


async def test_jobs_wait_for_a_silent_embedder_without_trying_it(tmp_path: Path) -> None:
    settings = {"CHORUS_SCHEDULER_EMBED_SECONDS": SHORT}
    async with world_behind_relays(tmp_path, **settings) as (world, relays):
        await world.events(await world.submit("before"))
        relays["embedder"].freeze()
        jobs = [await world.submit(f"prompt {n}") for n in range(3)]
        seen = await world.events(jobs[0], until="waiting")
        assert "embedder is not available: no answer in 0.5 s" in seen[-1].waiting.cause.message
        # Ends after several times the limit of a call; the other jobs have been due for as long.
        deadline = Timestamp()
        deadline.FromNanoseconds(int((time.time() + 3) * 1e9))
        assert kinds(await world.events(await world.submit("late", deadline=deadline)))[-1] == "failed"
        tries = [line for line in world.process.tail(500).splitlines() if "attempt interrupted" in line]
        assert len(tries) == 1, tries
        relays["embedder"].thaw()
        for job in jobs:
            events = await world.events(job)
            check_sequence(events)
            assert kinds(events)[-1] == "succeeded"
