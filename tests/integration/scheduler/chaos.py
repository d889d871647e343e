"""Two schedulers and three denoisers on one PostgreSQL while they are killed, stopped and restarted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import psycopg
from chorus.scheduler.v1 import scheduler_pb2 as pb
from sqlalchemy.engine import make_url

from tests.integration.scheduler.fakes import VIDEO
from tests.integration.scheduler.world import World, kinds
from tests.postgresql import create_database, running_server

LEASE_SECONDS: Final = 2
FAULTS: Final = (
    "kill a scheduler",
    "drain a scheduler",
    "stop a scheduler",
    "cut off the database",
    "kill a denoiser",
    "kill the embedder",
    "kill the cache",
    "stall the embedder",
    "stall the cache",
)

# Jobs beyond one for each request, jobs with an owner, and leases in force.
_COUNT_LEFTOVERS: Final = """
SELECT (SELECT count(*) FROM jobs) - %s
    + (SELECT count(*) FROM jobs WHERE owner IS NOT NULL)
    + (SELECT count(*) FROM schedulers WHERE lease_until > extract(epoch FROM clock_timestamp()))
"""


@dataclass
class Outcome:
    """What became of the jobs.

    Attributes:
        accepted: number of jobs that a scheduler accepted.
        faults: number of faults, by kind.
        lost: jobs without an end, without a video or with another one.
        repeated: jobs that ended more than once, and requests that created more than one job.
        gaps: jobs whose events are not numbered without gaps, or whose steps are out of order.
        leases: jobs with an owner and leases of schedulers, after both have ended.
        attempts: attempts at all jobs, together.
    """

    accepted: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    leases: int = 0
    attempts: int = 0


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


def cut_off(database: str) -> None:
    """Ends every connection to the database."""
    with contextlib.closing(psycopg.connect(make_url(database).render_as_string())) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


async def inject(fault: str, rng: random.Random, worlds: list[World], database: str) -> None:
    """Injects one fault and ends it."""
    world = rng.choice(worlds)
    match fault.split():
        case ["kill", "a", "scheduler"]:
            world.process.kill()
            await world.boot()
        case ["drain", _, _]:
            await asyncio.to_thread(world.process.terminate)
            await world.boot()
        case ["stop", _, _]:
            await stop_for(world, LEASE_SECONDS * 1.5)
        case ["cut", *_]:
            await asyncio.to_thread(cut_off, database)
        case ["stall", _, service]:
            fake = getattr(world, service)
            fake.answering.clear()
            await asyncio.sleep(rng.uniform(0.5, 3.0))
            fake.answering.set()
        case [_, _, service]:
            fake = rng.choice(world.denoisers) if service == "denoiser" else getattr(world, service)
            await fake.die()
            await asyncio.sleep(rng.uniform(0.1, 0.5))
            await fake.start()


def has_gap(events: list[pb.GenerationEvent]) -> bool:
    """Returns whether a number is missing, or a run that lost its job recorded a step.

    The steps of each attempt come in order, once, after those of an interrupted one that it continues.
    """
    step = 0
    for number, event in enumerate(events, 1):
        if event.sequence != number:
            return True
        if event.HasField("started"):
            step = event.started.resumed_step
        elif event.HasField("step_completed"):
            step += 1
            if event.step_completed.step.index != step:
                return True
    return False


async def submit_all(worlds: list[World], jobs: int) -> list[pb.Generation]:
    """Submits the jobs a tenth of a second apart, to the schedulers in turns."""
    accepted = []
    for number in range(jobs):
        order = worlds if number % 2 else worlds[::-1]

        async def send(world: World, number: int = number) -> pb.Generation:
            return await world.submit(f"job {number}", request_id=f"job-{number}")

        job = await patiently(order, send)
        assert isinstance(job, pb.Generation)
        accepted.append(job)
        await asyncio.sleep(0.1)
    return accepted


async def check(worlds: list[World], job: pb.Generation, outcome: Outcome) -> None:
    """Waits for the end of a job and notes what became of it."""

    async def follow(world: World) -> list[pb.GenerationEvent]:
        return await world.events(job, seconds=30.0)

    async def download(world: World) -> bytes:
        return (await world.video(job))[1]

    events = await patiently(worlds, follow)
    assert isinstance(events, list)
    # A warning may follow the end: the cache failed before it had the latents.
    ends = [kind for kind in kinds(events) if kind in ("succeeded", "failed", "cancelled")]
    if ends != ["succeeded"] or await patiently(worlds, download) != VIDEO:
        outcome.lost.append(job.generation_id)
    if len(ends) > 1:
        outcome.repeated.append(job.generation_id)
    if has_gap(events):
        outcome.gaps.append(job.generation_id)
    outcome.attempts += kinds(events).count("started")


async def run_chaos(folder: Path, jobs: int, faults: int, seed: int) -> Outcome:
    """Runs jobs while faults are injected one after the other, each kind equally often, and checks every job.

    Args:
        folder: empty directory for database, videos and logs.
        seed: seed of the order of the faults.
    """
    rng = random.Random(seed)
    outcome = Outcome()
    kinds_of_faults = [FAULTS[number % len(FAULTS)] for number in range(faults)]
    rng.shuffle(kinds_of_faults)
    with running_server(folder) as server:
        database = create_database(server)
        settings = {
            "CHORUS_SCHEDULER_DATABASE": database,
            "CHORUS_SCHEDULER_LEASE_SECONDS": str(LEASE_SECONDS),
            "CHORUS_SCHEDULER_MAX_CRASHES": "100",
        }
        async with (
            World(folder, settings, denoiser_count=3) as first,
            World(folder, sharing_with=first) as second,
        ):
            worlds = [first, second]
            for denoiser in first.denoisers:
                denoiser.step_seconds = 0.15
            submitting = asyncio.create_task(submit_all(worlds, jobs))
            for fault in kinds_of_faults:
                await inject(fault, rng, worlds, database)
                outcome.faults[fault] += 1
                await asyncio.sleep(rng.uniform(0.0, 0.5))
            accepted = await submitting
            outcome.accepted = len(accepted)
            for job in accepted:
                await check(worlds, job, outcome)
            ids = Counter(job.generation_id for job in accepted)
            outcome.repeated += [each for each, count in ids.items() if count > 1]
            assert all(denoiser.requests for denoiser in first.denoisers), "every denoiser had a run"
        with contextlib.closing(psycopg.connect(make_url(database).render_as_string())) as connection:
            row = connection.execute(_COUNT_LEFTOVERS, (jobs,)).fetchone()
            assert row is not None
            outcome.leases = row[0]
    return outcome
