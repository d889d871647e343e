"""Tests two schedulers on one PostgreSQL: any answers for any job, which runs once, even if one is killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio
from chorus.scheduler.v1 import scheduler_pb2 as pb
from sqlalchemy.engine import make_url

from tests.integration.scheduler.fakes import VIDEO
from tests.integration.scheduler.world import World, check_sequence, kinds
from tests.postgresql import create_database, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")
LEASE_SECONDS = 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worlds(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[World, World]]:
    folder = tmp_path_factory.mktemp("several")
    with running_server(folder) as server:
        settings = {
            "CHORUS_SCHEDULER_DATABASE": create_database(server),
            "CHORUS_SCHEDULER_LEASE_SECONDS": str(LEASE_SECONDS),
        }
        async with World(folder, settings) as first, World(folder, sharing_with=first) as second:
            yield first, second


@pytest_asyncio.fixture(loop_scope="module")
async def pair(worlds: tuple[World, World]) -> tuple[World, World]:
    for world in worlds:
        await world.refresh()
    return worlds


async def ended(world: World, generation: pb.Generation) -> list[pb.GenerationEvent]:
    events = await world.events(generation)
    check_sequence(events)
    return events


async def test_any_scheduler_answers_for_any_job(pair: tuple[World, World]) -> None:
    first, second = pair
    first.denoiser.pause_before = 2
    job = await first.submit()
    await second.events(job, until="step_completed")
    watched = asyncio.create_task(ended(second, job))
    first.denoiser.go.set()
    assert kinds(await watched)[-1] == "succeeded"
    for world in pair:
        assert (await world.get(job)).state == pb.GENERATION_STATE_SUCCEEDED
        _, data = await world.video(job)
        assert data == VIDEO
    again = await second.submit(request_id=job.request_id)
    assert again.generation_id == job.generation_id, "a request id is known to all"


async def test_many_jobs_run_once_each(pair: tuple[World, World]) -> None:
    jobs = [await pair[n % 2].submit(f"job {n}") for n in range(30)]
    for n, job in enumerate(jobs):
        assert kinds(await ended(pair[(n + 1) % 2], job))[-1] == "succeeded"
    runs = Counter(request.generation_id for request in pair[0].denoiser.requests)
    assert runs == {job.generation_id: 1 for job in jobs}


async def test_job_is_cancelled_by_a_scheduler_that_does_not_run_it(pair: tuple[World, World]) -> None:
    first, second = pair
    first.denoiser.pause_before = 2
    jobs = [await first.submit(f"cancelled {n}") for n in range(2)]
    for job in jobs:
        await first.events(job, until="step_completed")
        cancelled = await second.cancel(job)
        assert cancelled.state == pb.GENERATION_STATE_CANCELLED
        assert await asyncio.wait_for(first.denoiser.stopped.get(), 20) == job.generation_id
        assert kinds(await ended(first, job))[-1] == "cancelled"


async def test_jobs_of_a_killed_scheduler_are_taken_over(pair: tuple[World, World]) -> None:
    first, second = pair
    first.denoiser.pause_before = 2
    jobs = [await first.submit(f"taken over {n}") for n in range(4)]
    for job in jobs[:2]:  # one runs at each scheduler
        await second.events(job, until="step_completed")
    first.process.kill()
    first.denoiser.go.set()
    for job in jobs:
        events = await ended(second, job)
        assert kinds(events)[-1] == "succeeded"
        planned = kinds(events).count("planned")
        assert planned <= 2
        _, data = await second.video(job)
        assert data == VIDEO
    states = [await second.get(job) for job in jobs]
    assert sum(state.attempts - 1 for state in states) == 1, "only the job of the killed one ran again"
    await first.boot()
    assert kinds(await ended(first, await first.submit("after the restart")))[-1] == "succeeded"


async def test_drained_scheduler_hands_its_jobs_over_at_once(pair: tuple[World, World]) -> None:
    first, second = pair
    first.denoiser.pause_before = 2
    jobs = [await first.submit(f"handed over {n}") for n in range(2)]
    for job in jobs:
        await second.events(job, until="step_completed")
    stopping = asyncio.create_task(asyncio.to_thread(first.process.terminate))
    await asyncio.wait_for(second.denoiser.stopped.get(), 20)
    first.denoiser.go.set()
    for job in jobs:
        assert kinds(await ended(second, job))[-1] == "succeeded"
    assert await stopping == 0
    await first.boot()


async def test_broken_connections_to_the_database_are_replaced(pair: tuple[World, World]) -> None:
    """As in a failover: every connection ends, that of the notifications too."""
    first, second = pair
    first.denoiser.pause_before = 2
    jobs = [await first.submit(f"through a failover {n}") for n in range(3)]
    for job in jobs[:2]:
        await second.events(job, until="step_completed")
    watching = [asyncio.create_task(ended(world, jobs[2])) for world in pair]
    database = make_url(first.settings["CHORUS_SCHEDULER_DATABASE"]).render_as_string()
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'chorus-scheduler' AND pid <> pg_backend_pid()"
        )
    first.denoiser.go.set()
    for job in jobs:
        for world in pair:
            assert kinds(await ended(world, job))[-1] == "succeeded"
    for events in await asyncio.gather(*watching):
        assert kinds(events)[-1] == "succeeded"
    runs = Counter(request.generation_id for request in first.denoiser.requests)
    assert runs == {job.generation_id: 1 for job in jobs}, "nothing was lost, so nothing ran again"


async def test_class_that_one_scheduler_changes_holds_for_all(pair: tuple[World, World]) -> None:
    first, second = pair
    first.denoiser.pause_before = 1
    runs = [await world.submit(f"occupies {n}", priority=pb.PRIORITY_HIGH) for n, world in enumerate(pair)]
    for job in runs:
        await first.events(job, until="started")
    first.denoiser.pause_before = None
    waiting = [await first.submit(f"waits {n}", steps=1) for n in range(3)]
    request = pb.ChangePriorityRequest(generation_id=waiting[2].generation_id, priority=pb.PRIORITY_HIGH)
    moved = (await second.api.ChangePriority(request, timeout=20)).generation
    assert moved.queue_position == 1
    for world in pair:
        seen = [await world.get(job) for job in waiting]
        assert [job.queue_position for job in seen] == [2, 3, 1]
        assert seen[2].spec.priority == pb.PRIORITY_HIGH
    first.denoiser.go.set()
    for job in (*runs, *waiting):
        await ended(second, job)
    started = [request.generation_id for request in first.denoiser.requests]
    assert started.index(waiting[2].generation_id) < started.index(waiting[0].generation_id)
