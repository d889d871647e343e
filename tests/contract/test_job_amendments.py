"""Contract of the job store about changes by users: reports, classes, and what predicted starts depend on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from sqlalchemy import func, select

from services.scheduler.database_location import parse_location
from services.scheduler.jobs.database import open_database
from services.scheduler.jobs.job_filter import Decision, JobFilter
from services.scheduler.jobs.ordering import Priority
from services.scheduler.jobs.sql_store import SqlStore
from services.scheduler.jobs.states import IN_QUEUE, UNFINISHED, State
from services.scheduler.jobs.tables import reports
from tests.contract.test_job_store import CANCELLED, PLANNED, STARTED, SUCCEEDED, Opened, listed, new

LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH
GHOST = pb.ProblemReport(problem=pb.REPORTED_PROBLEM_DONOR_VISIBLE, comment="the square is still there")
LATE_WARNING = pb.GenerationEvent(warning=pb.WarningEvent())


@pytest.fixture
async def opened(location: str) -> AsyncIterator[Opened]:
    opening = Opened(location)
    yield opening
    await opening.close()


@pytest.fixture
async def store(opened: Opened) -> SqlStore:
    return await opened.open()


async def complete(store: SqlStore, job_id: str, plan: plan_pb2.Plan | None = None) -> None:
    """Submits a job and lets it succeed, with the donor of its plan."""
    await store.submit(new(job_id), 100)
    await store.claim(job_id)
    plan = plan or plan_pb2.Plan(total_steps=4)
    started = pb.GenerationEvent(started=pb.StartedEvent(total_steps=4))
    if plan.HasField("donor"):
        started.started.donor.CopyFrom(plan.donor)
    planned = pb.GenerationEvent(planned=pb.PlannedEvent(plan=plan))
    assert await store.advance(job_id, UNFINISHED, [planned, started, SUCCEEDED]) is not None


async def found(store: SqlStore, wanted: JobFilter) -> list[str]:
    return [job.job_id for job in (await store.page("default", wanted, None, 100)).jobs]


async def test_report_is_kept_replaced_and_withdrawn(store: SqlStore, opened: Opened) -> None:
    await complete(store, "a")
    await complete(store, "b")
    first = await store.set_report("a", GHOST)
    assert first is not None
    assert first.generation.report.problem == GHOST.problem
    assert first.generation.report.report_time.ToNanoseconds() == int((opened.now) * 1e9)
    assert await found(store, JobFilter(reported=True)) == ["a"]
    other = pb.ProblemReport(problem=pb.REPORTED_PROBLEM_OTHER)
    await store.set_report("a", other)
    await opened.close()
    store = await opened.open()
    job = await store.get("a")
    assert job is not None
    assert (job.generation.report.problem, job.generation.report.comment) == (other.problem, "")
    assert job.generation.last_sequence == 4, "a report is no event"
    for _ in range(2):
        withdrawn = await store.set_report("a", None)
        assert withdrawn is not None
        assert not withdrawn.generation.HasField("report")
    assert await found(store, JobFilter(reported=True)) == []


async def test_event_after_the_end_keeps_the_report(store: SqlStore) -> None:
    await complete(store, "a")
    await store.set_report("a", GHOST)
    warned = await store.advance("a", {State.SUCCEEDED}, [LATE_WARNING])
    assert warned is not None
    assert warned.generation.report.comment == GHOST.comment


async def test_only_a_job_that_succeeded_has_a_report(store: SqlStore) -> None:
    assert await store.set_report("unknown", GHOST) is None
    await store.submit(new("queued"), 10)
    await store.submit(new("cancelled"), 10)
    await store.advance("cancelled", UNFINISHED, [CANCELLED])
    for name in ("queued", "cancelled"):
        job = await store.set_report(name, GHOST)
        assert job is not None
        assert not job.generation.HasField("report")
    assert await found(store, JobFilter(reported=True)) == []


async def test_report_is_removed_with_its_job(store: SqlStore, opened: Opened) -> None:
    await complete(store, "a")
    await store.set_report("a", GHOST)
    await store.forget(["a"])
    await opened.close()
    database = await asyncio.to_thread(open_database, parse_location(opened.location, ""))
    with database.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(reports)).scalar_one() == 0
    database.close()


async def test_decision_and_edit_are_those_of_the_latest_plan(store: SqlStore) -> None:
    donor = plan_pb2.DonorRef(entry_id="e", score=0.9)
    hit = plan_pb2.Plan(total_steps=4, reuse_steps=2, donor=donor, edit="colour")
    await complete(store, "hit", hit)
    await complete(store, "exact", plan_pb2.Plan(total_steps=4, reuse_steps=4, donor=donor))
    await complete(store, "miss")
    await store.submit(new("queued"), 100)
    await store.submit(new("lost"), 100)
    await store.claim("lost")
    # A donor that was planned but could not be fetched.
    planned = pb.GenerationEvent(planned=pb.PlannedEvent(plan=hit))
    await store.advance("lost", UNFINISHED, [planned])
    assert await found(store, JobFilter(decision=Decision.HIT)) == ["lost", "hit"], "as planned"
    await store.advance("lost", UNFINISHED, [STARTED, SUCCEEDED])
    assert await found(store, JobFilter(decision=Decision.HIT)) == ["hit"]
    assert await found(store, JobFilter(decision=Decision.MISS)) == ["lost", "miss"]
    assert await found(store, JobFilter(decision=Decision.EXACT)) == ["exact"]
    assert await found(store, JobFilter(edit="colour")) == ["lost", "hit"]
    assert await found(store, JobFilter(edit="colour", decision=Decision.HIT)) == ["hit"]


async def test_changed_class_moves_a_job(store: SqlStore, opened: Opened) -> None:
    for name in "abc":
        await store.submit(new(name), 100)
    opened.changed.clear()
    job = await store.change_priority("c", HIGH)
    assert job is not None
    assert job.generation.spec.priority == pb.PRIORITY_HIGH
    assert await listed(store) == ["c", "a", "b"]
    assert await store.positions(["a", "c"]) == {"c": 1, "a": 2}
    await store.change_priority("a", LOW)
    assert await listed(store) == ["c", "b", "a"]
    await asyncio.sleep(0)
    assert opened.changed == ["c", "a"], "watchers and other schedulers hear of it"
    [first, *_] = await store.queue(1)
    assert first.priority is HIGH
    await opened.close()
    store = await opened.open()
    assert await listed(store) == ["c", "b", "a"], "after a restart"
    await store.change_priority("c", NORMAL)
    await store.change_priority("a", NORMAL)
    assert await listed(store) == ["a", "b", "c"], "each where it was"


async def test_moved_job_is_where_it_would_be_if_accepted_with_the_class(store: SqlStore) -> None:
    for name, priority in (("h1", HIGH), ("n1", NORMAL), ("h2", HIGH), ("n2", NORMAL), ("h3", HIGH)):
        await store.submit(new(name, priority=priority), 100)
    await store.change_priority("n1", HIGH)
    assert await listed(store) == ["h1", "n1", "h2", "h3", "n2"]


async def test_estimate_settles_the_place_in_the_new_class(store: SqlStore) -> None:
    for name in "abc":
        await store.submit(new(name, work=50.0), 100)
    await store.change_priority("c", HIGH)
    await store.estimate("c", 1.0)
    assert await listed(store) == ["c", "a", "b"]
    await store.estimate("b", 0.0)
    assert await listed(store) == ["c", "b", "a"]


async def test_moved_job_takes_part_in_the_shares_of_its_new_class(store: SqlStore) -> None:
    for number in range(4):
        await store.submit(new(f"a{number}", tenant="a", work=1.0, priority=HIGH), 100)
    await store.submit(new("b0", tenant="b", work=1.0), 100)
    await store.change_priority("b0", HIGH)
    assert (await listed(store))[0] == "b0", "its tenant had nothing of the class before"


async def test_repetition_of_a_moved_request_finds_it(store: SqlStore) -> None:
    await store.submit(new("a", "r"), 10)
    await store.change_priority("a", LOW)
    again, created = await store.submit(new("b", "r"), 10)
    assert (again.job_id, created, again.body_digest) == ("a", False, "d")


async def test_job_that_left_the_queue_keeps_its_class(store: SqlStore) -> None:
    await complete(store, "ended")
    await store.submit(new("running"), 10)
    await store.claim("running")
    await store.advance("running", IN_QUEUE, [PLANNED])
    for name in ("ended", "running"):
        job = await store.change_priority(name, HIGH)
        assert job is not None
        assert job.generation.spec.priority != pb.PRIORITY_HIGH
    assert await store.change_priority("unknown", HIGH) is None


async def test_job_that_is_prepared_returns_to_its_new_place(store: SqlStore) -> None:
    for name in "ab":
        await store.submit(new(name), 10)
    await store.claim("b")
    await store.change_priority("b", HIGH)
    assert await listed(store) == ["a"], "its scheduler has it still"
    await store.advance("b", IN_QUEUE, [], owner=store.scheduler_id)
    assert await listed(store) == ["b", "a"]


async def test_concurrent_changes_leave_one_of_the_classes(store: SqlStore) -> None:
    for name in "abc":
        await store.submit(new(name), 10)
    await asyncio.gather(*(store.change_priority("b", each) for each in (HIGH, LOW, HIGH, LOW)))
    [waiting] = [job for job in await store.queue(10) if job.job_id == "b"]
    job = await store.get("b")
    assert job is not None
    assert Priority(job.generation.spec.priority) is waiting.priority
    assert await listed(store) == (["b", "a", "c"] if waiting.priority is HIGH else ["a", "c", "b"])


async def test_outlook_has_the_work_of_what_waits_and_of_what_runs(store: SqlStore) -> None:
    await store.submit(new("running", work=4.0), 10)
    await store.submit(new("unknown"), 10)
    await store.submit(new("later", work=7.0), 10)
    await store.submit(new("exact"), 10)
    await store.estimate("exact", 0.0)
    await store.claim("running")
    outlook = await store.outlook(3)
    assert [(job.job_id, work) for job, work in outlook.owned] == [("running", 4.0)]
    waiting = {job.job_id: work for job, work in outlook.waiting}
    assert waiting == {"unknown": None, "exact": 0.0, "later": 7.0}
    assert [job.job_id for job, _ in outlook.waiting] == await listed(store)
    assert len((await store.outlook(1)).waiting) == 1
