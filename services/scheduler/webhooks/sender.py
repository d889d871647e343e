"""Delivers the outbox in the background."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from services.runtime.logs import get_logger
from services.scheduler.jobs.outbox import Delivery, Outbox, OutboxState
from services.scheduler.jobs.passing_faults import PassingFault
from services.scheduler.webhooks.backoff import Backoff
from services.scheduler.webhooks.event import make_body, make_event_id
from services.scheduler.webhooks.outcome import Outcome, OutcomeKind
from services.scheduler.webhooks.secret_file import SETTING, SigningSecrets
from services.scheduler.webhooks.signature import make_headers
from services.scheduler.webhooks.url import InvalidUrl, parse_url

log = get_logger("webhooks")

# Longest wait for a delivery of which no notice came, such as that of a scheduler that died. In seconds.
_LONGEST_WAIT_SECONDS: Final = 15.0
# Shortest wait, and the pause after a fault of the database, or while others claim what is due.
_SHORTEST_WAIT_SECONDS: Final = 0.02
_PAUSE_SECONDS: Final = 1.0
# Share of the attempts at once that one tenant may have.
_TENANT_SHARE: Final = 4


class Post(Protocol):
    """As `Poster.post`."""

    async def __call__(self, url: str, headers: dict[str, str], body: bytes) -> Outcome: ...


class WebhookSender:
    """Claims deliveries and sends them, several at once.

    Args:
        concurrency: number of attempts at once. A tenant has at most a quarter of them, but at least one, so
            that its slow receivers do not hold up those of others.
        lease_seconds: time after which another scheduler may repeat an attempt of this one; longer than an
            attempt takes.
        on_attempt: receives the outcome of each attempt.
        on_end: receives whether a delivery that has ended reached its receiver.

    Attributes:
        state: figures of the outbox of all schedulers, as last read.
    """

    def __init__(
        self,
        outbox: Outbox,
        secrets: SigningSecrets,
        post: Post,
        backoff: Backoff,
        *,
        concurrency: int,
        lease_seconds: float,
        on_attempt: Callable[[OutcomeKind], None] = lambda _: None,
        on_end: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._outbox = outbox
        self._secrets = secrets
        self._post = post
        self._backoff = backoff
        self._concurrency = concurrency
        self._tenant_limit = max(1, concurrency // _TENANT_SHARE)
        self._lease_seconds = lease_seconds
        self._on_attempt = on_attempt
        self._on_end = on_end
        self._attempts: dict[asyncio.Task[None], Delivery] = {}
        self._changed = asyncio.Event()
        self._stopped = False
        self.state = OutboxState(0, 0.0)

    def wake(self) -> None:
        """Looks at the outbox soon: a job has ended."""
        self._changed.set()

    async def run(self) -> None:
        """Runs until it is cancelled. A passing fault is logged; StoreError, which remains, is raised."""
        try:
            while True:
                self._changed.clear()
                try:
                    wait = await self._start_due()
                except PassingFault as fault:
                    log.warning("webhooks wait for a resource", error=fault.message)
                    wait = _PAUSE_SECONDS
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
        finally:
            await self._cancel_attempts()

    async def stop(self, seconds: float) -> None:
        """Begins no further attempt, and waits for those under way; returns to the outbox what does not end.

        Args:
            seconds: upper bound on the wait.
        """
        self._stopped = True
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=seconds)
        unfinished = list(self._attempts.values())
        await self._cancel_attempts()
        for delivery in unfinished:
            # Else its lease ends by itself.
            with contextlib.suppress(PassingFault):
                await self._outbox.postpone_delivery(delivery, 0.0)

    async def _start_due(self) -> float:
        """Starts attempts at deliveries that are due; returns the seconds until the next look."""
        self.state = await self._outbox.outbox_state()
        while not self._stopped and len(self._attempts) < self._concurrency:
            busy = self._find_busy_tenants()
            wait = await self._outbox.seconds_to_next(busy)
            if wait is None or wait > 0:
                return _bound_wait(wait)
            delivery = await self._outbox.claim_delivery(self._lease_seconds, busy)
            if delivery is None:
                return _PAUSE_SECONDS  # other schedulers are about to claim what is due
            if self._stopped:  # meanwhile
                await self._outbox.postpone_delivery(delivery, 0.0)
                break
            task = asyncio.create_task(self._deliver(delivery), name=f"webhook {delivery.job_id}")
            self._attempts[task] = delivery
            task.add_done_callback(self._handle_end)
        return _LONGEST_WAIT_SECONDS  # the end of an attempt comes earlier

    def _find_busy_tenants(self) -> list[str]:
        running = Counter(delivery.tenant for delivery in self._attempts.values())
        return [tenant for tenant, number in running.items() if number >= self._tenant_limit]

    def _handle_end(self, task: asyncio.Task[None]) -> None:
        del self._attempts[task]
        self._changed.set()
        if not task.cancelled() and (cause := task.exception()) is not None:
            log.error("webhook not settled; its lease ends by itself", exc_info=cause)

    async def _cancel_attempts(self) -> None:
        tasks = list(self._attempts)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, delivery: Delivery) -> None:
        """Makes one attempt and records its outcome."""
        try:
            outcome = await self._attempt(delivery)
        except Exception:
            log.exception("webhook attempt failed", generation_id=delivery.job_id)
            outcome = Outcome(OutcomeKind.INTERNAL, "a fault of the scheduler")
        self._on_attempt(outcome.kind)
        fields = {
            "generation_id": delivery.job_id,
            "tenant": delivery.tenant,
            "receiver": _name_receiver(delivery.url),
            "attempts": delivery.attempts,
        }
        try:
            if outcome.kind is OutcomeKind.DELIVERED:
                if await self._outbox.finish_delivery(delivery.job_id):
                    self._on_end(True)
                log.info("webhook delivered", **fields)
                return
            pause = None
            if outcome.kind is not OutcomeKind.GONE:
                pause = self._backoff.next_pause(
                    delivery.attempts, delivery.age, random.random, outcome.retry_after
                )
            if pause is not None:
                if await self._outbox.postpone_delivery(delivery, pause):
                    log.info("webhook not delivered", **fields, cause=outcome.cause, retry_in_seconds=pause)
            elif await self._outbox.finish_delivery(delivery.job_id):
                self._on_end(False)
                log.warning("webhook given up", **fields, cause=outcome.cause, age_seconds=delivery.age)
        except PassingFault as fault:
            log.warning("webhook not settled; its lease ends by itself", **fields, error=fault.message)

    async def _attempt(self, delivery: Delivery) -> Outcome:
        secrets = self._secrets.find(delivery.tenant)
        if not secrets:
            return Outcome(OutcomeKind.NO_SECRET, f"{SETTING} has no secret of the tenant any more")
        body = make_body(delivery)
        headers = make_headers(secrets, make_event_id(delivery.job_id), int(time.time()), body)
        return await self._post(delivery.url, headers, body)


def _bound_wait(wait: float | None) -> float:
    if wait is None:
        return _LONGEST_WAIT_SECONDS
    return min(max(wait, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)


def _name_receiver(url: str) -> str:
    """Returns host and port of a URL; path and query may be secrets."""
    try:
        return parse_url(url).authority
    except InvalidUrl:
        return "invalid"
