"""Contract of the job store: accepted jobs are durable and ordered, have one owner, and end once."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.scheduler.jobs.job_filter import JobFilter
from services.scheduler.jobs.ordering import Priority
from services.scheduler.jobs.sql_store import SqlStore, open_store
from services.scheduler.jobs.states import IN_QUEUE, UNFINISHED, State
from services.scheduler.jobs.store import (
    NewJob,
    OwnedJob,
    QueueFull,
    QueueState,
    TenantLimitReached,
)

PLANNED = pb.GenerationEvent(planned=pb.PlannedEvent(plan=plan_pb2.Plan(total_steps=4)))
STARTED = pb.GenerationEvent(started=pb.StartedEvent(total_steps=4))
SUCCEEDED = pb.GenerationEvent(succeeded=pb.SucceededEvent(steps_run=4))
CANCELLED = pb.GenerationEvent(cancelled=pb.CancelledEvent())
QUEUED = pb.GenerationEvent(queued=pb.QueuedEvent(queue_position=1))
WAITING = pb.GenerationEvent(waiting=pb.WaitingEvent())


def new(
    job_id: str,
    request_id: str | None = None,
    tenant: str = "default",
    priority: Priority = Priority.NORMAL,
    work: float = 0.0,
) -> NewJob:
    spec = pb.GenerationSpec(prompt=job_id)
    request_id = request_id or f"r-{job_id}"
    return NewJob(job_id, tenant, request_id, "d", spec, 2e9, "", "", priority=priority, work=work)


class Opened:
    """Opens stores of one database, and closes them. Jobs are accepted a second apart."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.changed: list[str] = []
        self.ended: list[str] = []
        self.stores: list[SqlStore] = []
        self.now = 1000.5

    def clock(self) -> float:
        self.now += 1.0
        return self.now

    async def open(self) -> SqlStore:
        store = await open_store(
            self.location,
            self.changed.append,
            clock=self.clock,
            on_end=lambda job: self.ended.append(job.job_id),
        )
        self.stores.append(store)
        return store

    async def close(self) -> None:
        for store in self.stores:
            await store.close()
        self.stores.clear()


@pytest.fixture
async def opened(location: str) -> AsyncIterator[Opened]:
    opened = Opened(location)
    yield opened
    await opened.close()


@pytest.fixture
async def store(opened: Opened) -> SqlStore:
    return await opened.open()


async def listed(store: SqlStore) -> list[str]:
    return [job.job_id for job in await store.queue(100)]


async def test_request_id_is_accepted_once(store: SqlStore, opened: Opened) -> None:
    job, created = await store.submit(new("a", "r"), 10)
    assert created
    assert job.generation.create_time.ToNanoseconds() == 1001_500_000_000
    again, created = await store.submit(new("b", "r"), 10)
    assert (again.job_id, created) == ("a", False)
    other, created = await store.submit(new("c", "r", "other"), 10)
    assert (other.job_id, created) == ("c", True)
    assert await store.get("b") is None


async def test_concurrent_submissions_of_one_request_create_one_job(store: SqlStore) -> None:
    results = await asyncio.gather(*(store.submit(new(f"j{n}", "r"), 10) for n in range(8)))
    assert len({job.job_id for job, _ in results}) == 1
    assert sum(created for _, created in results) == 1


async def test_full_queue_rejects_a_job_and_stores_nothing(store: SqlStore) -> None:
    for name in "ab":
        await store.submit(new(name), 2)
    with pytest.raises(QueueFull):
        await store.submit(new("c"), 2)
    assert await store.get("c") is None
    _, created = await store.submit(new("again", "r-a"), 2)
    assert not created, "a repetition occupies no further place"
    await store.claim("a")
    _, created = await store.submit(new("c"), 2)
    assert created, "a job that was started takes no place in the queue"


async def test_concurrent_submissions_do_not_exceed_the_limit(store: SqlStore) -> None:
    results = await asyncio.gather(
        *(store.submit(new(f"j{n}"), 3) for n in range(12)), return_exceptions=True
    )
    assert sum(isinstance(result, QueueFull) for result in results) == 9
    assert len(await listed(store)) == 3


async def test_unfinished_jobs_of_a_tenant_are_limited_until_one_ends(store: SqlStore) -> None:
    await store.submit(new("a"), 10, 2)
    await store.submit(new("b"), 10, 2)
    await store.claim("a")
    await store.advance("a", IN_QUEUE, [PLANNED])
    with pytest.raises(TenantLimitReached):
        await store.submit(new("c"), 10, 2)
    assert await store.get("c") is None
    _, created = await store.submit(new("again", "r-a"), 10, 2)
    assert not created, "a repetition is no further job"
    _, created = await store.submit(new("foreign", tenant="other"), 10, 2)
    assert created, "each tenant has a limit of its own"
    await store.advance("a", UNFINISHED, [SUCCEEDED])
    _, created = await store.submit(new("c"), 10, 2)
    assert created
    with pytest.raises(TenantLimitReached):
        await store.submit(new("d"), 10, 2)
    _, created = await store.submit(new("d"), 10)
    assert created, "0 is no limit"


async def test_concurrent_submissions_do_not_exceed_the_limit_of_a_tenant(store: SqlStore) -> None:
    tenants = ("one", "two")
    submissions = [store.submit(new(f"{each}{n}", tenant=each), 100, 3) for n in range(8) for each in tenants]
    results = await asyncio.gather(*submissions, return_exceptions=True)
    assert sum(isinstance(result, TenantLimitReached) for result in results) == 10
    for each in tenants:
        assert len((await store.page(each, JobFilter(), None, 100)).jobs) == 3


async def test_events_are_numbered_without_gaps(store: SqlStore, opened: Opened) -> None:
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
    assert opened.changed == ["a"] * 4
    assert opened.ended == ["a"]


async def test_job_ends_once_under_concurrent_writers(store: SqlStore, opened: Opened) -> None:
    await store.submit(new("a"), 10)
    await store.advance("a", IN_QUEUE, [PLANNED])
    results = await asyncio.gather(
        store.advance("a", {State.RUNNING}, [SUCCEEDED]),
        *(store.advance("a", UNFINISHED, [CANCELLED]) for _ in range(4)),
    )
    assert sum(result is not None for result in results) == 1
    assert await store.advance("a", UNFINISHED, [CANCELLED]) is None
    kinds = [e.WhichOneof("event") for e in await store.events("a", 0, 100)]
    assert len(kinds) == 3
    assert opened.ended == ["a"]


async def test_repeated_change_is_recorded_once(store: SqlStore, opened: Opened) -> None:
    """The answer to a commit may be lost: the caller then repeats the change."""
    await store.submit(new("a"), 10)
    await store.advance("a", IN_QUEUE, [PLANNED])
    for _ in range(2):
        job = await store.advance("a", {State.RUNNING}, [SUCCEEDED], change="c1")
        assert job is not None
        assert job.state is State.SUCCEEDED
    assert await store.advance("a", {State.RUNNING}, [SUCCEEDED], change="c2") is None
    assert len(await store.events("a", 0, 100)) == 3
    assert opened.ended == ["a"]


async def test_illegal_event_changes_nothing(store: SqlStore) -> None:
    await store.submit(new("a"), 10)
    with pytest.raises(ValueError, match="cannot happen"):
        await store.advance("a", IN_QUEUE, [PLANNED, PLANNED])
    job = await store.get("a")
    assert job is not None
    assert job.state is State.QUEUED
    assert len(await store.events("a", 0, 100)) == 1


async def test_jobs_and_models_persist_across_reopening(opened: Opened) -> None:
    store = await opened.open()
    for name in "abc":
        await store.submit(new(name), 10)
    await store.claim("b")
    await store.advance("b", IN_QUEUE, [PLANNED], crashed=True)
    await store.save_models(b"models")
    await store.save_models(b"more models")
    former = store.scheduler_id
    await store.end_lease()
    await opened.close()
    store = await opened.open()
    assert await listed(store) == ["a", "c"]
    assert (await store.look(0.0, 10, 10)).owned == [OwnedJob("b", former, State.RUNNING)]
    job = await store.get("b")
    assert job is not None
    assert (job.state, job.crashes, job.generation.attempts) == (State.RUNNING, 1, 1)
    assert await store.load_models() == b"more models"
    [submitted] = await store.find("default", "r-c")
    assert submitted.job_id == "c"


async def test_pages_are_newest_first_and_of_one_tenant(store: SqlStore) -> None:
    for n in range(5):
        await store.submit(new(f"j{n}"), 10)
    await store.submit(new("foreign", tenant="other"), 10)
    await store.advance("j3", UNFINISHED, [CANCELLED])
    first = await store.page("default", JobFilter(), None, 2)
    assert [j.job_id for j in first.jobs] == ["j4", "j3"]
    second = await store.page("default", JobFilter(), first.beyond, 9)
    assert ([j.job_id for j in second.jobs], second.beyond) == (["j2", "j1", "j0"], None)
    ended = await store.page("default", JobFilter(state=State.CANCELLED), None, 9)
    assert [j.job_id for j in ended.jobs] == ["j3"]


def group(*job_ids: str, request_id: str = "r", tenant: str = "default", work: float = 0.0) -> list[NewJob]:
    """Returns the outputs of one request."""
    return [
        replace(new(job_id, request_id, tenant, work=work), output_index=index, output_count=len(job_ids))
        for index, job_id in enumerate(job_ids, 1)
    ]


async def test_outputs_of_a_request_are_accepted_together_and_once(store: SqlStore, opened: Opened) -> None:
    submission = await store.submit_all(group("a", "b", "c"), 10)
    jobs, created = submission.jobs, submission.created
    assert created
    assert [job.job_id for job in jobs] == ["a", "b", "c"]
    assert {job.generation.request_id for job in jobs} == {"r"}
    assert [(job.generation.output_index, job.generation.output_count) for job in jobs] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]
    assert await listed(store) == ["a", "b", "c"]
    assert opened.changed == ["a", "b", "c"]
    submission = await store.submit_all(group("d", "e", "f"), 10)
    again, created = submission.jobs, submission.created
    assert ([job.job_id for job in again], created) == (["a", "b", "c"], False)
    assert await store.find("default", "r") == again
    submission = await store.submit_all(group("g", "h", tenant="other"), 10)
    other, created = submission.jobs, submission.created
    assert ([job.job_id for job in other], created) == (["g", "h"], True)


async def test_outputs_take_places_in_the_queue_together_or_not_at_all(store: SqlStore) -> None:
    await store.submit(new("a", "first"), 3)
    with pytest.raises(QueueFull):
        await store.submit_all(group("b", "c", "d"), 3)
    assert await listed(store) == ["a"]
    assert await store.find("default", "r") == []
    submission = await store.submit_all(group("b", "c"), 3)
    created = submission.created
    assert created


async def test_concurrent_submissions_of_several_outputs_are_accepted_once(store: SqlStore) -> None:
    results = await asyncio.gather(
        *(store.submit_all(group(f"a{n}", f"b{n}", f"c{n}"), 100) for n in range(6))
    )
    assert sum(each.created for each in results) == 1
    assert len({tuple(job.job_id for job in each.jobs) for each in results}) == 1
    assert len(await listed(store)) == 3


async def test_each_output_ends_and_is_forgotten_on_its_own(store: SqlStore) -> None:
    await store.submit_all(group("a", "b", "c"), 10)
    for job_id in "ab":
        await store.advance(job_id, UNFINISHED, [CANCELLED])
    await store.forget(["a"])
    submission = await store.submit_all(group("d", "e", "f"), 10)
    left, created = submission.jobs, submission.created
    assert ([job.job_id for job in left], created) == (["b", "c"], False), "the request_id is in use"
    await store.advance("c", UNFINISHED, [CANCELLED])
    await store.forget(["b", "c"])
    submission = await store.submit_all(group("d", "e"), 10)
    created = submission.created
    assert created


async def test_time_of_runs_and_waits_survives_a_restart(opened: Opened) -> None:
    """Every change is a second after the last one."""
    store = await opened.open()
    await store.submit(new("a"), 10)  # at 1001.5
    await store.advance("a", IN_QUEUE, [PLANNED])
    await store.advance("a", {State.RUNNING}, [STARTED])
    await opened.close()
    store = await opened.open()
    opened.now += 10.0
    await store.advance("a", {State.RUNNING}, [QUEUED])
    await store.advance("a", IN_QUEUE, [PLANNED])
    await store.advance("a", {State.RUNNING}, [STARTED])
    job = await store.advance("a", {State.RUNNING}, [SUCCEEDED])
    assert job is not None
    timings = job.generation.timings
    assert (timings.waiting_seconds, timings.running_seconds) == (4.0, 12.0)
    assert job.generation.start_time.ToNanoseconds() == 1016_500_000_000
    [*_, last] = await store.events("a", 0, 100)
    assert last.succeeded.timings == timings


async def test_queue_is_ordered_by_acceptance_and_delay(store: SqlStore) -> None:
    """Jobs are accepted a second apart; .8 s of work are a delay of 2.4 s, so that two jobs pass."""
    await store.submit(new("first", work=0.8), 10)
    positions = []
    for name in "abcd":
        job, _ = await store.submit(new(name), 10)
        [event] = await store.events(job.job_id, 0, 1)
        positions.append(event.queued.queue_position)
    assert await listed(store) == ["a", "b", "first", "c", "d"]
    assert positions == [1, 2, 4, 5], "as known when each was accepted"
    assert await store.positions(["first", "c", "none"]) == {"first": 3, "c": 4}
    assert [job.job_id for job in await store.queue(2)] == ["a", "b"]
    await store.advance("a", IN_QUEUE, [WAITING])
    assert await listed(store) == ["a", "b", "first", "c", "d"], "a waiting job keeps its place"
    await store.claim("a")
    assert await store.positions(["a", "first"]) == {"first": 2}


async def test_expected_wait_follows_the_number_of_slots(store: SqlStore) -> None:
    for name in "abc":
        await store.submit(new(name, work=10.0), 10)
    assert await store.expect_wait("default", Priority.LOW, 10.0) == pytest.approx(30.0)
    store.set_slots(3)
    assert await store.expect_wait("default", Priority.LOW, 10.0) == pytest.approx(10.0)


async def test_priority_decides_before_the_work(store: SqlStore) -> None:
    await store.submit(new("low", priority=Priority.LOW), 10)
    await store.submit(new("normal"), 10)
    await store.submit(new("high", priority=Priority.HIGH, work=100.0), 10)
    assert await listed(store) == ["high", "normal", "low"]


async def test_estimate_settles_the_place_of_a_waiting_job(store: SqlStore) -> None:
    for name in "abc":
        await store.submit(new(name, work=10.0), 10)
    assert await listed(store) == ["a", "b", "c"]
    assert (await store.queue_state()).work == 30.0
    order = []
    for work in (10.0, 10.0, 0.1):
        job = await store.next_unestimated()
        assert job is not None
        order.append(job.job_id)
        await store.estimate(job.job_id, work if work < 1 else None)
    assert order == ["a", "b", "c"]
    assert await store.next_unestimated() is None
    assert await listed(store) == ["c", "a", "b"]
    assert (await store.queue_state()).work == pytest.approx(20.1)
    await store.claim("c")
    await store.estimate("c", 500.0)
    await store.advance("c", IN_QUEUE, [], owner=store.scheduler_id)
    assert await listed(store) == ["c", "a", "b"], "an estimate of a job that no longer waits is ignored"


async def test_state_of_the_queue_counts_the_jobs_that_wait(store: SqlStore) -> None:
    assert await store.queue_state() == QueueState(0, 0.0, 0.0)
    assert (await store.look(0.0, 10, 10)).next_deadline is None
    for name in "abc":
        await store.submit(new(name), 10)
    await store.claim("a")
    assert await store.queue_state() == QueueState(2, 0.0, 1002.5)
    assert (await store.look(0.0, 10, 10)).next_deadline == 2e9
    assert (await store.look(2e9 - 1, 10, 10)).overdue == []
    assert (await store.look(2e9, 10, 1)).overdue == ["b"]
    assert (await store.look(2e9, 10, 10)).overdue == ["b", "c"]


async def test_job_has_one_owner(store: SqlStore) -> None:
    await store.submit(new("a"), 10)
    claims = await asyncio.gather(*(store.claim("a") for _ in range(6)))
    [job] = [job for job in claims if job is not None]
    assert (job.job_id, job.state) == ("a", State.QUEUED)
    own = store.scheduler_id
    assert (await store.look(0.0, 10, 10)).owned == [OwnedJob("a", own, State.QUEUED)]
    assert await listed(store) == []
    assert await store.advance("a", IN_QUEUE, [PLANNED], owner="another") is None
    assert await store.advance("a", IN_QUEUE, [PLANNED], owner=None) is None
    assert await store.advance("a", IN_QUEUE, [PLANNED], owner=own) is not None
    assert await store.advance("a", {State.RUNNING}, [WAITING], owner=own) is not None
    assert (await store.look(0.0, 10, 10)).owned == []
    assert await listed(store) == ["a"], "it waits again, and may be claimed by any scheduler"
    assert await store.advance("a", IN_QUEUE, [], owner=own) is None
    await store.claim("a")
    await store.advance("a", IN_QUEUE, [], owner=own)
    assert await listed(store) == ["a"], "a job is released without an event"
    await store.claim("a")
    await store.advance("a", UNFINISHED, [CANCELLED])
    assert (await store.look(0.0, 10, 10)).owned == []


async def test_known_jobs_are_found_until_they_are_forgotten(store: SqlStore) -> None:
    assert await store.find_known([]) == set()
    for job_id in ("a", "b"):
        await store.submit(new(job_id), 10)
        await store.advance(job_id, UNFINISHED, [CANCELLED])
    assert await store.find_known(["a", "b", "c"]) == {"a", "b"}
    await store.forget(["a"])
    assert await store.find_known(["a", "b", "c"]) == {"b"}


async def test_database_keeps_its_id(opened: Opened) -> None:
    first = await opened.open()
    ids = await asyncio.gather(*(first.database_id() for _ in range(4)))
    assert len(set(ids)) == 1
    assert len(ids[0]) == 32
    await opened.close()
    assert await (await opened.open()).database_id() == ids[0]


async def test_ended_jobs_are_surplus_by_number_and_age(store: SqlStore) -> None:
    for n in range(6):
        await store.submit(new(f"j{n}"), 10)  # accepted at 1001.5 + n
    for n in (0, 1, 3, 4):
        await store.advance(f"j{n}", UNFINISHED, [CANCELLED])  # ended at 1007.5 and later
    assert await store.surplus(10, 0.0, 10) == []
    assert await store.surplus(2, 0.0, 10) == ["j0", "j1"]
    assert await store.surplus(2, 0.0, 1) == ["j0"]
    assert await store.surplus(10, 1009.0, 10) == ["j0", "j1"]
    assert await store.surplus(10, math.inf, 10) == ["j0", "j1", "j3", "j4"]
    await store.forget(["j0", "j1", "j2"])
    page = await store.page("default", JobFilter(), None, 9)
    assert [j.job_id for j in page.jobs] == ["j5", "j4", "j3", "j2"]
    assert await store.events("j0", 0, 9) == []
    assert len(await store.events("j2", 0, 9)) == 1
    _, created = await store.submit(new("fresh", "r-j0"), 10)
    assert created


async def test_random_calls_keep_each_job_in_one_place(store: SqlStore) -> None:
    """A job waits, or has an owner, or has ended; events have no gap; order and positions agree."""
    rng = random.Random(7)
    own = store.scheduler_id
    names: list[str] = []
    for n in range(160):
        if n < 20:
            names.append(f"j{n}")
        name = rng.choice(names)
        match rng.randrange(6):
            case 0:
                await store.submit(new(name, priority=rng.choice(list(Priority)), work=rng.random()), 100)
            case 1:
                await store.claim(name)
            case 2:
                await store.advance(name, IN_QUEUE, [PLANNED], owner=own)
            case 3:
                await store.advance(name, {State.RUNNING}, [WAITING], owner=own)
            case 4:
                await store.advance(name, IN_QUEUE, [], owner=own)
            case _:
                await store.advance(name, {State.RUNNING}, [SUCCEEDED], owner=own)
        waiting = await listed(store)
        owned = {job.job_id for job in (await store.look(0.0, 10, 10)).owned}
        assert await store.positions(waiting) == {job: place for place, job in enumerate(waiting, 1)}
        for job_id in names:
            job = await store.get(job_id)
            if job is None:
                continue
            places = [job_id in waiting, job_id in owned, job.state not in UNFINISHED]
            assert places.count(True) == 1, (job_id, places)
            sequence = [event.sequence for event in await store.events(job_id, 0, 1000)]
            assert sequence == list(range(1, job.generation.last_sequence + 1))
