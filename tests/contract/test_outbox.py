"""Contract of the outbox: each end that a webhook selects is delivered by one scheduler at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from chorus.common.v1 import errors_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.scheduler.jobs.outbox import Delivery, OutboxState
from services.scheduler.jobs.sql_store import SqlStore
from services.scheduler.jobs.states import IN_QUEUE, UNFINISHED, State
from services.scheduler.jobs.store import NewJob
from tests.contract.test_job_store import CANCELLED, PLANNED, QUEUED, SUCCEEDED, WAITING, Opened

URL = "https://hooks.example/a?token=b"
FAILED = pb.GenerationEvent(
    failed=pb.FailedEvent(error=errors_pb2.JobError(reason=errors_pb2.ERROR_REASON_INTERNAL))
)
ALL = (pb.WEBHOOK_EVENT_COMPLETED, pb.WEBHOOK_EVENT_FAILED, pb.WEBHOOK_EVENT_CANCELLED)
LONG = 600.0


@pytest.fixture
async def opened(location: str) -> AsyncIterator[Opened]:
    opening = Opened(location)
    yield opening
    await opening.close()


@pytest.fixture
async def store(opened: Opened) -> SqlStore:
    return await opened.open()


async def submit(
    store: SqlStore, job_id: str, tenant: str = "default", *events: pb.WebhookEvent.ValueType
) -> None:
    webhook = pb.Webhook(url=URL, events=events or ALL)
    spec = pb.GenerationSpec(prompt=job_id, webhook=webhook)
    await store.submit(NewJob(job_id, tenant, f"r-{job_id}", "d", spec, 2e9, "", ""), 1_000)


async def end(store: SqlStore, *job_ids: str, tenant: str = "default") -> None:
    """Submits jobs and cancels them, in this order."""
    for job_id in job_ids:
        await submit(store, job_id, tenant)
        assert await store.advance(job_id, UNFINISHED, [CANCELLED]) is not None


async def claim(store: SqlStore, seconds: float = LONG, *excluded: str) -> Delivery:
    delivery = await store.claim_delivery(seconds, excluded)
    assert delivery is not None
    return delivery


async def claim_all(store: SqlStore) -> list[str]:
    found = []
    while (delivery := await store.claim_delivery(LONG)) is not None:
        found.append(delivery.job_id)
    return found


@pytest.mark.parametrize(
    ("event", "type_name"),
    [(SUCCEEDED, "video.completed"), (FAILED, "video.failed"), (CANCELLED, "video.failed")],
)
async def test_end_of_a_job_adds_its_delivery(
    store: SqlStore, event: pb.GenerationEvent, type_name: str
) -> None:
    await submit(store, "a", "acme")
    assert await store.seconds_to_next() is None
    await store.advance("a", IN_QUEUE, [PLANNED])
    assert await store.claim_delivery(LONG) is None
    await store.advance("a", {State.RUNNING}, [event])
    wait = await store.seconds_to_next()
    assert wait is not None
    assert wait <= 0
    delivery = await claim(store)
    assert delivery == Delivery("a", "acme", URL, type_name, delivery.created, delivery.age, 1)
    assert 0 <= delivery.age < LONG
    assert await store.claim_delivery(LONG) is None, "it is claimed"


@pytest.mark.parametrize("selected", ALL)
async def test_only_selected_ends_are_delivered(store: SqlStore, selected: pb.WebhookEvent.ValueType) -> None:
    for job_id, event in zip("abc", (SUCCEEDED, FAILED, CANCELLED), strict=True):
        await submit(store, job_id, "default", selected)
        await store.advance(job_id, IN_QUEUE, [PLANNED])
        await store.advance(job_id, {State.RUNNING}, [event])
    assert await claim_all(store) == ["abc"[ALL.index(selected)]]


async def test_every_way_to_end_adds_one_delivery(store: SqlStore) -> None:
    """As the dispatcher ends jobs: in the queue, while it waits, by its owner, and by another scheduler."""
    for job_id in "abcd":
        await submit(store, job_id)
    await store.advance("a", UNFINISHED, [FAILED], owner=None)
    await store.advance("b", {State.QUEUED}, [WAITING])
    await store.advance("b", UNFINISHED, [FAILED])
    await store.claim("c")
    await store.advance("c", IN_QUEUE, [PLANNED], owner=store.scheduler_id)
    await store.advance("c", {State.RUNNING}, [SUCCEEDED], owner=store.scheduler_id, change="end")
    await store.advance("c", {State.RUNNING}, [SUCCEEDED], owner=store.scheduler_id, change="end")
    await store.claim("d")
    await store.advance("d", IN_QUEUE, [PLANNED])
    await store.advance("d", {State.RUNNING}, [QUEUED], crashed=True)
    await store.advance("d", UNFINISHED, [CANCELLED])
    for job_id in "abcd":
        assert await store.advance(job_id, UNFINISHED, [FAILED]) is None, "it ends once"
    assert sorted(await claim_all(store)) == list("abcd")


async def test_job_without_a_webhook_adds_none(store: SqlStore) -> None:
    await store.submit(NewJob("a", "t", "r", "d", pb.GenerationSpec(prompt="a"), 2e9, "", ""), 10)
    await store.advance("a", UNFINISHED, [CANCELLED])
    assert await store.outbox_state() == OutboxState(0, 0.0)


async def test_lease_that_ended_is_claimed_again(store: SqlStore) -> None:
    await end(store, "a")
    first = await claim(store, 0.0)
    second = await claim(store, LONG)
    assert (first.attempts, second.attempts) == (1, 2)
    assert second.created == first.created
    assert not await store.postpone_delivery(first, 0.0), "the later claim holds it"
    assert await store.claim_delivery(LONG) is None
    assert await store.finish_delivery("a"), "a success counts, whoever had it"
    assert not await store.postpone_delivery(second, 0.0)
    assert not await store.finish_delivery("a")


async def test_postponed_delivery_is_due_when_its_time_comes(store: SqlStore) -> None:
    await end(store, "a", "b")
    delivery = await claim(store)
    assert delivery.job_id == "a", "the oldest first"
    assert await store.postpone_delivery(delivery, LONG)
    assert (await claim(store)).job_id == "b"
    wait = await store.seconds_to_next()
    assert wait is not None
    assert 0 < wait <= LONG
    assert await store.postpone_delivery(delivery, 0.0)
    again = await claim(store)
    assert (again.job_id, again.attempts) == ("a", 2)


async def test_excluded_tenants_are_passed_over(store: SqlStore) -> None:
    await end(store, "a1", "a2", tenant="a")
    await end(store, "b1", tenant="b")
    assert (await claim(store, LONG, "a")).job_id == "b1"
    assert await store.claim_delivery(LONG, ["a", "b"]) is None
    assert await store.seconds_to_next(["a", "b"]) is None
    wait = await store.seconds_to_next(["a"])
    assert wait is not None
    assert wait > 0, "that of b is claimed"
    assert (await claim(store)).job_id == "a1"


async def test_deliveries_are_counted_until_they_end(store: SqlStore) -> None:
    await end(store, "a1", "a2", tenant="a")
    await end(store, "b1", tenant="b")
    assert [await store.count_deliveries(tenant) for tenant in "abc"] == [2, 1, 0]
    state = await store.outbox_state()
    assert state.pending == 3
    assert 0 <= state.oldest_age < LONG
    await claim(store)
    assert await store.count_deliveries("a") == 2
    for job_id in ("a1", "a2", "b1"):
        assert await store.finish_delivery(job_id)
    assert await store.outbox_state() == OutboxState(0, 0.0)


async def test_pending_delivery_outlasts_its_job(store: SqlStore) -> None:
    await end(store, "a")
    await store.forget(["a"])
    assert await store.get("a") is None
    assert (await claim(store)).url == URL


async def test_deliveries_survive_the_process(opened: Opened, store: SqlStore) -> None:
    await end(store, "a", "b")
    await claim(store, 0.0)
    await opened.close()
    assert sorted(await claim_all(await opened.open())) == ["a", "b"]


async def test_concurrent_claims_get_different_deliveries(opened: Opened, store: SqlStore) -> None:
    names = [f"j{number:02}" for number in range(24)]
    await end(store, *names)
    stores = [store]
    if opened.location.startswith("postgresql"):
        stores.append(await opened.open())
    claimed = [
        each.job_id
        for each in await asyncio.gather(*(stores[n % len(stores)].claim_delivery(LONG) for n in range(40)))
        if each is not None
    ]
    rest = await claim_all(store)  # a claim may pass over a row that another one locks, and find none
    assert sorted([*claimed, *rest]) == names


@pytest.mark.parametrize("seed", range(5))
async def test_outbox_is_a_set_of_pending_deliveries(store: SqlStore, seed: int) -> None:
    """Compares the outbox with a model: ids of the deliveries that are due, and those that are claimed."""
    draw = random.Random(seed)
    due: set[str] = set()
    held: list[Delivery] = []
    for number in range(40):
        action = draw.choice(("end", "end", "claim", "expire", "postpone", "finish"))
        if action == "end":
            await end(store, f"n{number}")
            due.add(f"n{number}")
        elif action in ("claim", "expire"):
            claimed = await store.claim_delivery(LONG if action == "claim" else 0.0)
            assert (claimed.job_id in due) if claimed is not None else not due
            if claimed is not None and action == "claim":
                due.remove(claimed.job_id)
                held.append(claimed)
        elif held and action == "postpone":
            assert await store.postpone_delivery(held[0], 0.0)
            due.add(held.pop(0).job_id)
        elif held and action == "finish":
            assert await store.finish_delivery(held.pop(0).job_id)
        assert (await store.outbox_state()).pending == len(due) + len(held)
    assert set(await claim_all(store)) == due
