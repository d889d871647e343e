"""Contract of the job store about tenants that share the queue: their places, and the limit of their runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.jobs.ordering import Ordering, Priority
from services.scheduler.jobs.placing import settle_order_key
from services.scheduler.jobs.sql_store import SqlStore
from services.scheduler.jobs.states import IN_QUEUE, State
from services.scheduler.jobs.store import TooLate
from tests.contract.test_job_store import CANCELLED, PLANNED, Opened, new

LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH


@pytest.fixture
async def opened(location: str) -> AsyncIterator[Opened]:
    opening = Opened(location)
    yield opening
    await opening.close()


@pytest.fixture
async def store(opened: Opened) -> SqlStore:
    return await opened.open()


async def submit(store: SqlStore, *names: str, work: float = 1.0, priority: Priority = NORMAL) -> None:
    """Submits jobs whose tenants are the first letters of their names."""
    for name in names:
        await store.submit(new(name, tenant=name[0], work=work, priority=priority), 1_000)


async def order(store: SqlStore) -> list[str]:
    return [job.job_id for job in await store.queue(1_000)]


async def test_tenant_with_few_jobs_does_not_wait_behind_all_of_another(store: SqlStore) -> None:
    await submit(store, *(f"a{number}" for number in range(6)))
    await submit(store, "b0", "b1", "b2")
    assert await order(store) == ["b0", "a0", "b1", "a1", "b2", "a2", "a3", "a4", "a5"]
    await submit(store, "c0", "c1")
    # Each tenant had as much before the second job of c as c had.
    assert await order(store) == ["c0", "b0", "a0", "c1", "b1", "a1", "b2", "a2", "a3", "a4", "a5"]


async def test_shares_are_of_work_not_of_jobs(store: SqlStore) -> None:
    await submit(store, *(f"a{number}" for number in range(6)), work=1.0)
    await submit(store, "b0", "b1", work=3.0)
    found = await order(store)
    assert found.index("b0") == 0
    assert found.index("b1") == 4, "three of a come before it, as much work as the first of b"


async def test_fairness_holds_within_a_class(store: SqlStore) -> None:
    await submit(store, "a0", "a1", priority=HIGH)
    await submit(store, "a2", "a3", priority=LOW)
    await submit(store, "b0")
    await submit(store, "b1", priority=LOW)
    assert await order(store) == ["a0", "a1", "b0", "b1", "a2", "a3"]


async def test_alone_a_tenant_keeps_the_order_by_work(store: SqlStore) -> None:
    await submit(store, "a0", "a1", work=5.0)
    await submit(store, "a2", work=0.1)
    assert await order(store) == ["a2", "a0", "a1"]


async def test_place_by_share_outlasts_the_estimate(store: SqlStore) -> None:
    await submit(store, *(f"a{number}" for number in range(4)))
    await submit(store, "b0")
    await store.estimate("b0", 2.0)
    assert (await order(store))[0] == "b0"
    await store.estimate("a3", 0.0)
    assert await order(store) == ["b0", "a0", "a3", "a1", "a2"], "without work it has no delay"


async def test_expected_wait_is_that_of_the_place(store: SqlStore) -> None:
    await submit(store, *(f"a{number}" for number in range(4)), work=10.0)
    assert await store.expect_wait("a", NORMAL, 10.0) == pytest.approx(40.0)
    assert await store.expect_wait("b", NORMAL, 10.0) == pytest.approx(0.0)


@given(
    order_key=st.floats(0, 2e3),
    works=st.tuples(st.floats(0, 100), st.floats(0, 100)),
    backlog=st.floats(0, 1e3),
    priority=st.sampled_from(list(Priority)),
)
def test_settled_place_is_never_later_than_by_work(
    order_key: float, works: tuple[float, float], backlog: float, priority: Priority
) -> None:
    ordering = Ordering()
    key = settle_order_key(order_key, 1_000.0, priority, backlog, works, ordering)
    by_work = 1_000.0 + ordering.delay(priority, works[1], backlog)
    assert key in (order_key, by_work)
    assert key <= by_work


async def test_tenant_has_no_more_runs_than_its_limit(store: SqlStore) -> None:
    await submit(store, "a0", "a1", "a2", "b0")
    look = await store.look(0.0, 10, 10, tenant_limit=2)
    assert [job.job_id for job in look.startable] == [job.job_id for job in look.first]
    for name in ("a0", "a1"):
        assert await store.claim(name, 2) is not None
    assert await store.claim("a2", 2) is None
    look = await store.look(0.0, 1, 10, tenant_limit=2)
    assert [job.job_id for job in look.startable] == ["b0"], "others are not hidden by its jobs"
    assert await store.claim("b0", 2) is not None
    await store.advance("a0", IN_QUEUE, [PLANNED])
    assert await store.claim("a2", 2) is None, "a running job counts"
    await store.advance("a0", {State.RUNNING}, [CANCELLED])
    assert await store.claim("a2", 2) is not None


async def test_concurrent_claims_do_not_exceed_the_limit(opened: Opened, store: SqlStore) -> None:
    await submit(store, *(f"{tenant}{number}" for tenant in "ab" for number in range(8)))
    stores = [store]
    if opened.location.startswith("postgresql"):
        stores.append(await opened.open())
    claims = [each.claim(f"{tenant}{number}", 3) for number in range(8) for tenant in "ab" for each in stores]
    claimed = [job for job in await asyncio.gather(*claims) if job is not None]
    assert sorted(job.tenant for job in claimed) == ["a"] * 3 + ["b"] * 3


async def test_request_that_cannot_end_in_time_is_not_accepted(store: SqlStore) -> None:
    await submit(store, "a0", "a1", work=10.0)
    for name in ("a0", "a1"):
        await store.estimate(name, 10.0)
    late = replace(new("a2", tenant="a"), deadline=1_030.0)
    with pytest.raises(TooLate) as raised:
        await store.submit_all([late], 10, least_seconds=10.0)
    assert raised.value.wait == pytest.approx(20.0)
    assert await store.get("a2") is None
    submission = await store.submit_all([late], 10, least_seconds=1.0)
    assert submission.created
    assert submission.positions == await store.positions(["a2"])
