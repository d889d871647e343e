"""Verifies the background task: which deliveries it begins, and what becomes of each outcome."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from chorus.scheduler.v1 import scheduler_pb2 as pb
from structlog.testing import capture_logs

from services.scheduler.jobs.outbox import Delivery
from services.scheduler.jobs.sql_store import SqlStore, open_store
from services.scheduler.jobs.states import UNFINISHED
from services.scheduler.jobs.store import NewJob
from services.scheduler.webhooks.backoff import Backoff
from services.scheduler.webhooks.outcome import Outcome, OutcomeKind
from services.scheduler.webhooks.secret_file import SigningSecrets
from services.scheduler.webhooks.sender import WebhookSender

KNOWN = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
URL = "https://hooks.example/secret-path?token=secret-token"
SECONDS = 30.0
DELIVERED = Outcome(OutcomeKind.DELIVERED)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(str(tmp_path / "jobs.db"), lambda _: None)
    yield store
    await store.close()


async def end(store: SqlStore, *job_ids: str) -> None:
    """Ends jobs whose tenants are the first letters of their ids."""
    for job_id in job_ids:
        spec = pb.GenerationSpec(prompt=job_id, webhook=pb.Webhook(url=URL))
        await store.submit(NewJob(job_id, job_id[0], job_id, "d", spec, 2e9, "", ""), 1_000)
        await store.advance(job_id, UNFINISHED, [pb.GenerationEvent(cancelled=pb.CancelledEvent())])


class Running:
    """A sender that runs, with a scripted receiver.

    Attributes:
        posted: ids of the events of all attempts, in the order of their begin.
        attempts, ends: what the sender reported.
    """

    def __init__(self, store: SqlStore, directory: Path, **options: Any) -> None:
        secrets = directory / "secrets.json"
        secrets.write_text(json.dumps({tenant: [KNOWN] for tenant in "abc"}))
        self.answer: Callable[[str], Awaitable[Outcome]] = self.accept
        self.posted: list[str] = []
        self.attempts: list[OutcomeKind] = []
        self.ends: list[bool] = []
        self._changed = asyncio.Condition()
        self.sender = WebhookSender(
            store,
            SigningSecrets(secrets),
            self._post,
            options.pop("backoff", Backoff(0.01, 0.01, 600.0)),
            concurrency=options.pop("concurrency", 4),
            lease_seconds=600.0,
            on_attempt=self.attempts.append,
            on_end=self._handle_end,
        )
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Running:
        self.task = asyncio.create_task(self.sender.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.task is not None
        assert not self.task.done(), "it runs until it is cancelled"
        self.task.cancel()
        await asyncio.wait([self.task])

    async def accept(self, job_id: str) -> Outcome:
        return DELIVERED

    async def _post(self, url: str, headers: dict[str, str], body: bytes) -> Outcome:
        assert url == URL
        job_id = headers["webhook-id"].removeprefix("evt_")
        self.posted.append(job_id)
        await self._notify()
        return await self.answer(job_id)

    def _handle_end(self, delivered: bool) -> None:
        self.ends.append(delivered)
        self._notifying = asyncio.ensure_future(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, expected: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(expected)


async def test_what_is_due_is_delivered(store: SqlStore, tmp_path: Path) -> None:
    await end(store, "a1", "a2", "b1")
    async with Running(store, tmp_path) as running:
        await running.until(lambda: len(running.ends) == 3)
        await end(store, "c1")
        running.sender.wake()
        await running.until(lambda: len(running.ends) == 4)
    assert Counter(running.posted) == Counter(["a1", "a2", "b1", "c1"])
    assert running.ends == [True] * 4
    assert (await store.outbox_state()).pending == 0


async def test_slow_receiver_of_a_tenant_holds_up_no_other(store: SqlStore, tmp_path: Path) -> None:
    await end(store, *(f"a{number}" for number in range(6)), "b1", "c1")
    opened = asyncio.Event()

    async def answer(job_id: str) -> Outcome:
        if job_id.startswith("a"):
            await opened.wait()
        return DELIVERED

    async with Running(store, tmp_path, concurrency=8) as running:
        running.answer = answer
        await running.until(lambda: len(running.ends) == 2)
        assert Counter(job_id[0] for job_id in running.posted) == Counter(a=2, b=1, c=1), "a quarter of 8"
        opened.set()
        await running.until(lambda: len(running.ends) == 8)


async def test_attempts_at_once_are_limited(store: SqlStore, tmp_path: Path) -> None:
    await end(store, *(f"{tenant}{number}" for number in range(4) for tenant in "abc"))
    running_now, highest = 0, 0

    async def answer(job_id: str) -> Outcome:
        nonlocal running_now, highest
        running_now += 1
        highest = max(highest, running_now)
        await asyncio.sleep(0)
        running_now -= 1
        return DELIVERED

    async with Running(store, tmp_path, concurrency=2) as running:
        running.answer = answer
        await running.until(lambda: len(running.ends) == 12)
    assert highest <= 2


async def test_failed_attempt_is_repeated_with_the_same_event(store: SqlStore, tmp_path: Path) -> None:
    kinds = [OutcomeKind.REJECTED, OutcomeKind.TIMEOUT, OutcomeKind.UNREACHABLE, OutcomeKind.ADDRESS_REFUSED]
    outcomes = [*(Outcome(kind, "cause") for kind in kinds), DELIVERED]
    await end(store, "a1")

    async def answer(job_id: str) -> Outcome:
        return outcomes[len(running.posted) - 1]

    with capture_logs() as logs:
        async with Running(store, tmp_path) as running:
            running.answer = answer
            await running.until(lambda: running.ends == [True])
    assert running.posted == ["a1"] * 5
    assert running.attempts == [*kinds, OutcomeKind.DELIVERED]
    text = str(logs)
    assert "hooks.example" in text
    assert "secret-path" not in text
    assert "secret-token" not in text


@pytest.mark.parametrize(
    ("kind", "backoff"),
    [
        (OutcomeKind.GONE, Backoff(0.01, 0.01, 600.0)),
        (OutcomeKind.REJECTED, Backoff(1e-9, 1e-9, 1e-9)),
    ],
)
async def test_given_up_delivery_is_removed_with_a_warning(
    store: SqlStore, tmp_path: Path, kind: OutcomeKind, backoff: Backoff
) -> None:
    await end(store, "a1")

    async def answer(job_id: str) -> Outcome:
        return Outcome(kind, "status 4xx")

    with capture_logs() as logs:
        async with Running(store, tmp_path, backoff=backoff) as running:
            running.answer = answer
            await running.until(lambda: running.ends == [False])
    [warning] = [line for line in logs if line["log_level"] == "warning"]
    assert warning["event"] == "webhook given up"
    assert warning["generation_id"] == "a1"
    assert "secret-token" not in str(warning)
    assert (await store.outbox_state()).pending == 0


async def test_pause_that_the_receiver_asks_for_is_kept(store: SqlStore, tmp_path: Path) -> None:
    await end(store, "a1")

    async def answer(job_id: str) -> Outcome:
        return Outcome(OutcomeKind.REJECTED, "status 429", retry_after=5_000.0)

    async with Running(store, tmp_path, backoff=Backoff(0.01, 3_600.0, 86_400.0)) as running:
        running.answer = answer
        await running.until(lambda: bool(running.posted))
        await running.sender.stop(SECONDS)
    wait = await store.seconds_to_next()
    assert wait is not None
    assert 3_500 < wait <= 3_600, "as long as asked, up to the longest pause"


async def test_fault_of_this_program_costs_one_attempt(store: SqlStore, tmp_path: Path) -> None:
    await end(store, "a1")

    async def answer(job_id: str) -> Outcome:
        if len(running.posted) == 1:
            raise RuntimeError("a fault")
        return DELIVERED

    async with Running(store, tmp_path) as running:
        running.answer = answer
        await running.until(lambda: running.ends == [True])
    assert running.attempts == [OutcomeKind.INTERNAL, OutcomeKind.DELIVERED]


async def test_delivery_of_a_tenant_without_a_secret_waits(store: SqlStore, tmp_path: Path) -> None:
    await end(store, "d1", "a1")
    async with Running(store, tmp_path, backoff=Backoff(600.0, 600.0, 86_400.0)) as running:
        await running.until(lambda: running.ends == [True])
        await running.sender.stop(SECONDS)
    assert running.posted == ["a1"]
    assert sorted(running.attempts) == [OutcomeKind.DELIVERED, OutcomeKind.NO_SECRET]
    assert await store.count_deliveries("d") == 1


async def test_stopped_sender_returns_what_it_does_not_finish(store: SqlStore, tmp_path: Path) -> None:
    await end(store, "a1", "b1")
    opened = asyncio.Event()

    async def answer(job_id: str) -> Outcome:
        if job_id == "a1":
            await asyncio.Event().wait()
        await opened.wait()
        return DELIVERED

    async with Running(store, tmp_path, concurrency=8) as running:
        running.answer = answer
        await running.until(lambda: len(running.posted) == 2)
        assert await store.claim_delivery(1.0) is None
        opened.set()
        await running.until(lambda: running.ends == [True])
        await running.sender.stop(0.0)
        await end(store, "c1")
        running.sender.wake()
        claimed = [await store.claim_delivery(600.0) for _ in range(3)]
    assert [each.job_id if isinstance(each, Delivery) else None for each in claimed] == ["a1", "c1", None]
    assert sorted(running.posted) == ["a1", "b1"], "it begins no further attempt"
