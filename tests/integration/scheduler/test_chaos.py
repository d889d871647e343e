"""Tests two schedulers and three denoisers on one PostgreSQL while they are killed, stopped and restarted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import grpc
import psycopg
import pytest
from chorus.scheduler.v1 import scheduler_pb2 as pb
from sqlalchemy.engine import make_url

from tests.integration.scheduler.fakes import VIDEO
from tests.integration.scheduler.world import World, kinds
from tests.postgresql import create_database, running_server

JOBS: Final = 60
FAULTS: Final = 14
LEASE_SECONDS: Final = 2
SEED: Final = int(os.environ.get("CHORUS_TEST_CHAOS_SEED", "14"))


async def patiently(worlds: list[World], call: Callable[[World], Awaitable[object]]) -> object:
    """Returns the answer of the first scheduler that gives one, in turns."""
    async with asyncio.timeout(120):
        while True:
            for world in worlds:
                try:
                    return await call(world)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in (
                        grpc.StatusCode.UNAVAILABLE,
                        grpc.StatusCode.DEADLINE_EXCEEDED,
                        grpc.StatusCode.CANCELLED,
                    ):
                        raise
                except asyncio.CancelledError:
                    # The call was cancelled because its channel was closed for a restart; not this task.
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
            await asyncio.sleep(0.05)


async def stop_for(world: World, seconds: float) -> None:
    """Stops a scheduler for longer than its lease: others take its jobs over, and it must notice."""
    pid = world.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


async def inject(rng: random.Random, worlds: list[World]) -> None:
    """Injects one fault and ends it."""
    world = rng.choice(worlds)
    match rng.choice(["kill", "drain", "stop", "denoiser", "embedder", "cache"]):
        case "kill":
            world.process.kill()
            await world.boot()
        case "drain":
            await asyncio.to_thread(world.process.terminate)
            await world.boot()
        case "stop":
            await stop_for(world, LEASE_SECONDS * 1.5)
        case service:
            fake = rng.choice(world.denoisers) if service == "denoiser" else getattr(world, service)
            await fake.die()
            await asyncio.sleep(rng.uniform(0.1, 0.5))
            await fake.start()


def check_steps(events: list[pb.GenerationEvent]) -> None:
    """Asserts that no run that lost its job records a step: the steps of each attempt come in order, once."""
    step = 0
    for event in events:
        if event.HasField("planned"):
            step = 0
        elif event.HasField("step_completed"):
            step += 1
            assert event.step_completed.step.index == step, events


@pytest.mark.timeout(300)
async def test_every_accepted_job_ends_once(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    with running_server(tmp_path) as server:
        database = create_database(server)
        settings = {
            "CHORUS_SCHEDULER_DATABASE": database,
            "CHORUS_SCHEDULER_LEASE_SECONDS": str(LEASE_SECONDS),
            "CHORUS_SCHEDULER_MAX_CRASHES": "100",
        }
        async with (
            World(tmp_path, settings, denoiser_count=3) as first,
            World(tmp_path, sharing_with=first) as second,
        ):
            worlds = [first, second]
            for denoiser in first.denoisers:
                denoiser.step_seconds = 0.15
            accepted: list[pb.Generation] = []

            async def submit_all() -> None:
                for number in range(JOBS):
                    order = worlds if number % 2 else worlds[::-1]

                    async def send(world: World, number: int = number) -> pb.Generation:
                        return await world.submit(f"job {number}", request_id=f"job-{number}")

                    job = await patiently(order, send)
                    assert isinstance(job, pb.Generation)
                    accepted.append(job)
                    await asyncio.sleep(0.1)

            submitting = asyncio.create_task(submit_all())
            for _ in range(FAULTS):
                await inject(rng, worlds)
                await asyncio.sleep(rng.uniform(0.0, 0.5))
            await submitting

            for job in accepted:

                async def follow(world: World, job: pb.Generation = job) -> list[pb.GenerationEvent]:
                    return await world.events(job, seconds=30.0)

                events = await patiently(worlds, follow)
                assert isinstance(events, list)
                assert [event.sequence for event in events] == list(range(1, len(events) + 1))
                # A warning may follow the end: the cache failed before it had the latents.
                ends = [kind for kind in kinds(events) if kind in ("succeeded", "failed", "cancelled")]
                assert ends == ["succeeded"], events
                check_steps(events)
                _, data = await first.video(job)
                assert data == VIDEO
            assert len({job.generation_id for job in accepted}) == JOBS
            assert all(denoiser.requests for denoiser in first.denoisers)
        with contextlib.closing(psycopg.connect(make_url(database).render_as_string())) as connection:
            owned = connection.execute("SELECT count(*) FROM jobs WHERE owner IS NOT NULL").fetchone()
            leases = connection.execute(
                "SELECT count(*) FROM schedulers WHERE lease_until > extract(epoch FROM clock_timestamp())"
            ).fetchone()
            assert (owned, leases) == ((0,), (0,)), "no job has an owner, and no drained scheduler a lease"
