"""Verifies the job store: accepted jobs are durable and ordered, and a job ends once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.scheduler.jobs.sqlite import SqliteStore, open_store
from services.scheduler.jobs.states import IN_QUEUE, UNFINISHED, State
from services.scheduler.jobs.store import NewJob, QueueFull, StoreError

PLANNED = pb.GenerationEvent(planned=pb.PlannedEvent(plan=plan_pb2.Plan(total_steps=4)))
SUCCEEDED = pb.GenerationEvent(succeeded=pb.SucceededEvent(steps_run=4))
CANCELLED = pb.GenerationEvent(cancelled=pb.CancelledEvent())
QUEUED = pb.GenerationEvent(queued=pb.QueuedEvent(queue_position=1))


def new(job_id: str, request_id: str | None = None, tenant: str = "default") -> NewJob:
    return NewJob(
        job_id, tenant, request_id or f"r-{job_id}", "d", pb.GenerationSpec(prompt=job_id), 2e9, "", ""
    )


class Opened:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.changed: list[str] = []

    async def __aenter__(self) -> SqliteStore:
        self.store = await open_store(self.path, self.changed.append, clock=lambda: 1000.5)
        return self.store

    async def __aexit__(self, *_: object) -> None:
        await self.store.close()


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    opened = Opened(tmp_path / "sub" / "jobs.db")
    async with opened:
        yield opened


async def test_request_id_is_accepted_once(opened: Opened) -> None:
    store = opened.store
    job, created = await store.submit(new("a", "r"), 10)
    assert created
    assert job.generation.create_time.ToNanoseconds() == 1000_500_000_000
    again, created = await store.submit(new("b", "r"), 10)
    assert (again.job_id, created) == ("a", False)
    other, created = await store.submit(new("c", "r", "other"), 10)
    assert (other.job_id, created) == ("c", True)
    assert await store.get("b") is None


async def test_concurrent_submissions_of_one_request_create_one_job(opened: Opened) -> None:
    results = await asyncio.gather(*(opened.store.submit(new(f"j{n}", "r"), 10) for n in range(8)))
    assert len({job.job_id for job, _ in results}) == 1
    assert sum(created for _, created in results) == 1


async def test_full_queue_rejects_a_job_and_stores_nothing(opened: Opened) -> None:
    store = opened.store
    for name in "ab":
        await store.submit(new(name), 2)
    with pytest.raises(QueueFull):
        await store.submit(new("c"), 2)
    assert await store.get("c") is None
    _, created = await store.submit(new("again", "r-a"), 2)
    assert not created, "a repetition occupies no further place"
    await store.advance("a", IN_QUEUE, [PLANNED])
    _, created = await store.submit(new("c"), 2)
    assert created, "a running job takes no place in the queue"


async def test_events_are_numbered_without_gaps(opened: Opened) -> None:
    store = opened.store
    await store.submit(new("a"), 10)
    await store.advance("a", IN_QUEUE, [PLANNED, pb.GenerationEvent(warning=pb.WarningEvent())])
    await store.advance("a", {State.RUNNING}, [QUEUED])
    await store.advance("a", IN_QUEUE, [CANCELLED])
    events = await store.events("a", 0, 100)
    assert [e.sequence for e in events] == [1, 2, 3, 4, 5]
    assert [e.WhichOneof("event") for e in events] == ["queued", "planned", "warning", "queued", "cancelled"]
    assert [e.sequence for e in await store.events("a", 2, 2)] == [3, 4]
    job = await store.get("a")
    assert job is not None
    assert job.generation.last_sequence == 5
    await asyncio.sleep(0)
    assert opened.changed == ["a"] * 4


async def test_job_ends_once_under_concurrent_writers(opened: Opened) -> None:
    store = opened.store
    await store.submit(new("a"), 10)
    await store.advance("a", IN_QUEUE, [PLANNED])
    results = await asyncio.gather(
        store.advance("a", {State.RUNNING}, [SUCCEEDED]), store.advance("a", UNFINISHED, [CANCELLED])
    )
    assert sum(result is not None for result in results) == 1
    assert await store.advance("a", UNFINISHED, [CANCELLED]) is None
    kinds = [e.WhichOneof("event") for e in await store.events("a", 0, 100)]
    assert kinds == ["queued", "planned", "succeeded"]


async def test_illegal_event_changes_nothing(opened: Opened) -> None:
    store = opened.store
    await store.submit(new("a"), 10)
    with pytest.raises(ValueError, match="cannot happen"):
        await store.advance("a", IN_QUEUE, [PLANNED, PLANNED])
    job = await store.get("a")
    assert job is not None
    assert job.state is State.QUEUED
    assert len(await store.events("a", 0, 100)) == 1


async def test_jobs_and_models_persist_across_reopening(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with Opened(path) as store:
        for name in "abc":
            await store.submit(new(name), 10)
        await store.advance("b", IN_QUEUE, [PLANNED], crashed=True)
        await store.save_models(b"models")
    async with Opened(path) as store:
        assert [job.job_id for job in await store.unfinished()] == ["a", "b", "c"]
        job = await store.get("b")
        assert job is not None
        assert (job.state, job.crashes, job.generation.attempts) == (State.RUNNING, 1, 1)
        assert await store.load_models() == b"models"
        submitted = await store.find("default", "r-c")
        assert submitted is not None
        assert submitted.job_id == "c"


async def test_pages_are_newest_first_and_of_one_tenant(opened: Opened) -> None:
    store = opened.store
    for n in range(5):
        await store.submit(new(f"j{n}"), 10)
    await store.submit(new("foreign", tenant="other"), 10)
    await store.advance("j3", UNFINISHED, [CANCELLED])
    first = await store.page("default", None, None, 2)
    assert [j.job_id for j in first] == ["j4", "j3"]
    assert [j.job_id for j in await store.page("default", None, first[-1].number, 9)] == ["j2", "j1", "j0"]
    assert [j.job_id for j in await store.page("default", State.CANCELLED, None, 9)] == ["j3"]


async def test_only_ended_jobs_are_surplus(opened: Opened) -> None:
    store = opened.store
    for n in range(5):
        await store.submit(new(f"j{n}"), 10)
    for n in (0, 1, 3):
        await store.advance(f"j{n}", UNFINISHED, [CANCELLED])
    surplus = await store.surplus(1)
    assert surplus == ["j1", "j0"]
    await store.forget([*surplus, "j2"])
    assert [j.job_id for j in await store.page("default", None, None, 9)] == ["j4", "j3", "j2"]
    assert await store.events("j0", 0, 9) == []
    _, created = await store.submit(new("fresh", "r-j0"), 10)
    assert created


async def test_second_scheduler_is_rejected_with_the_holder_of_the_database(opened: Opened) -> None:
    with pytest.raises(
        StoreError, match=r"in use by another scheduler \(process \d+\).*CHORUS_SCHEDULER_DATABASE"
    ):
        await open_store(opened.path, lambda _: None)


async def test_foreign_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes(b"not a database, but long enough to look like one" * 10)
    with pytest.raises(StoreError, match="not a database"):
        await open_store(path, lambda _: None)
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="schema 99"):
        await open_store(path, lambda _: None)
