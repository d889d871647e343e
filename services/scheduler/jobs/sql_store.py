"""Job store and outbox in a SQL database, SQLite or PostgreSQL; statements run in threads of its own."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

from chorus.scheduler.v1 import scheduler_pb2 as pb
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from services.runtime.logs import get_logger
from services.runtime.startup import progress
from services.scheduler.database_location import parse_location
from services.scheduler.jobs import (
    amendment_statements,
    outbox_statements,
    queue_statements,
    search,
    statements,
)
from services.scheduler.jobs.amendments import Amendments
from services.scheduler.jobs.database import Database, open_database
from services.scheduler.jobs.database_faults import classify_fault
from services.scheduler.jobs.job_filter import JobFilter
from services.scheduler.jobs.notifications import CHANNEL, format_notification, listen
from services.scheduler.jobs.ordering import Ordering, Priority
from services.scheduler.jobs.outbox import Delivery, Outbox, OutboxState
from services.scheduler.jobs.passing_faults import PassingFault
from services.scheduler.jobs.rows import Transaction
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import (
    ANY_OWNER,
    Job,
    JobPage,
    JobStore,
    NewJob,
    Outlook,
    QueuedJob,
    QueueLook,
    QueueState,
    StoreError,
    Submission,
)

log = get_logger("job_store")

P = ParamSpec("P")
R = TypeVar("R")

# Time for which a call is repeated when a fault may pass, and the pause in between, in seconds.
_PATIENCE_SECONDS: Final = 2.0
_PAUSE: Final = 0.1
_START_PAUSE: Final = 1.0
_MODELS: Final = "models"
_DEFAULT_ORDERING: Final = Ordering()


class SqlStore(JobStore, Amendments, Outbox):
    """Job store, amendments and outbox, created by `open_store` and closed by its owner."""

    def __init__(
        self,
        database: Database,
        threads: ThreadPoolExecutor,
        on_change: Callable[[str], None],
        on_end: Callable[[Job], None],
        clock: Callable[[], float],
        lease_seconds: float,
        ordering: Ordering,
    ) -> None:
        self._database = database
        self._threads = threads
        self._on_change = on_change
        self._on_end = on_end
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._ordering = ordering
        self._loop = asyncio.get_running_loop()
        self._id = secrets.token_hex(8)

    @property
    def scheduler_id(self) -> str:
        return self._id

    async def submit_all(
        self,
        outputs: Sequence[NewJob],
        queue_limit: int,
        tenant_limit: int = 0,
        least_seconds: float | None = None,
    ) -> Submission:
        return await self._write(
            statements.submit,
            outputs,
            queue_limit,
            tenant_limit,
            least_seconds,
            self._clock(),
            self._ordering,
        )

    async def find(self, tenant: str, request_id: str) -> list[Job]:
        return await self._read(statements.find_by_request, tenant, request_id)

    async def get(self, job_id: str) -> Job | None:
        return await self._read(statements.find_by_id, job_id)

    async def page(self, tenant: str, wanted: JobFilter, beyond: int | None, limit: int) -> JobPage:
        return await self._read(search.list_page, tenant, wanted, beyond, limit)

    async def queue(self, limit: int) -> list[QueuedJob]:
        return await self._read(queue_statements.list_queue, limit)

    async def next_unestimated(self) -> Job | None:
        return await self._read(queue_statements.find_unestimated)

    async def estimate(self, job_id: str, work: float | None) -> None:
        await self._write(queue_statements.estimate, job_id, work, self._ordering)

    async def expect_wait(
        self, tenant: str, priority: Priority, work: float, *, at_least: bool = False
    ) -> float:
        return await self._read(
            queue_statements.expect_wait, tenant, priority, work, at_least, self._clock(), self._ordering
        )

    def set_slots(self, slots: int) -> None:
        self._ordering = replace(self._ordering, slots=slots)

    async def queue_state(self) -> QueueState:
        return await self._read(queue_statements.read_queue_state)

    async def outlook(self, limit: int) -> Outlook:
        return await self._read(queue_statements.read_outlook, limit)

    async def positions(self, job_ids: Collection[str]) -> dict[str, int]:
        return await self._read(queue_statements.find_positions, job_ids) if job_ids else {}

    async def look(self, now: float, limit: int, overdue_limit: int, tenant_limit: int = 0) -> QueueLook:
        return await self._read(queue_statements.look, self._id, now, limit, overdue_limit, tenant_limit)

    async def claim(self, job_id: str, tenant_limit: int = 0) -> Job | None:
        return await self._write(statements.claim, job_id, self._id, tenant_limit)

    async def keep_lease(self) -> None:
        if not self._database.exclusive:
            await self._write(statements.keep_lease, self._id, self._lease_seconds)

    async def end_lease(self) -> None:
        await self._write(statements.end_lease, self._id)

    async def advance(
        self,
        job_id: str,
        expect: Collection[State],
        events: Sequence[pb.GenerationEvent],
        *,
        owner: str | None = ANY_OWNER,
        crashed: bool = False,
        change: str = "",
    ) -> Job | None:
        change = change or secrets.token_hex(8)
        return await self._write(
            statements.advance, job_id, expect, events, owner, crashed, change, self._clock()
        )

    async def events(self, job_id: str, after: int, limit: int) -> list[pb.GenerationEvent]:
        return await self._read(statements.list_events, job_id, after, limit)

    async def surplus(self, keep: int, ended_before: float, limit: int) -> list[str]:
        return await self._read(statements.list_surplus, keep, ended_before, limit)

    async def forget(self, job_ids: Sequence[str]) -> None:
        await self._write(statements.forget, job_ids)

    async def find_known(self, job_ids: Collection[str]) -> set[str]:
        return await self._read(statements.find_known, job_ids) if job_ids else set()

    async def database_id(self) -> str:
        return await self._write(statements.read_or_create_id, secrets.token_hex(16))

    async def save_models(self, data: bytes) -> None:
        await self._write(statements.save_document, _MODELS, data)

    async def load_models(self) -> bytes:
        return await self._read(statements.load_document, _MODELS)

    async def set_report(self, job_id: str, report: pb.ProblemReport | None) -> Job | None:
        return await self._write(amendment_statements.set_report, job_id, report, self._clock())

    async def change_priority(self, job_id: str, priority: Priority) -> Job | None:
        return await self._write(amendment_statements.change_priority, job_id, priority, self._ordering)

    async def claim_delivery(self, lease_seconds: float, excluded: Collection[str] = ()) -> Delivery | None:
        return await self._write(outbox_statements.claim_delivery, lease_seconds, excluded)

    async def finish_delivery(self, job_id: str) -> bool:
        return await self._write(outbox_statements.finish_delivery, job_id)

    async def postpone_delivery(self, delivery: Delivery, seconds: float) -> bool:
        return await self._write(outbox_statements.postpone_delivery, delivery, seconds)

    async def seconds_to_next(self, excluded: Collection[str] = ()) -> float | None:
        return await self._read(outbox_statements.seconds_to_next, excluded)

    async def count_deliveries(self, tenant: str) -> int:
        return await self._read(outbox_statements.count_deliveries, tenant)

    async def outbox_state(self) -> OutboxState:
        return await self._read(outbox_statements.read_outbox_state)

    async def listen(self, on_change: Callable[[str], None], on_gap: Callable[[], None]) -> None:
        """Forwards the changes that other schedulers make, until it is cancelled.

        Args:
            on_change: receives the id of each job that another scheduler changed.
            on_gap: called when changes may have been missed.
        """
        if self._database.exclusive:
            await asyncio.Event().wait()
        await listen(self._database.engine.url, self._id, on_change, on_gap)

    async def close(self) -> None:
        await self._loop.run_in_executor(self._threads, self._database.close)
        self._threads.shutdown()

    async def _read(
        self, work: Callable[Concatenate[Transaction, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        return await self._run(lambda: self._transact(False, work, *args, **kwargs))

    async def _write(
        self, work: Callable[Concatenate[Transaction, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        return await self._run(lambda: self._transact(True, work, *args, **kwargs))

    async def _run(self, transact: Callable[[], R]) -> R:
        """Runs a transaction in a thread, again while a fault may pass.

        Raises PassingFault, or StoreError if the database is damaged.
        """
        end = self._loop.time() + _PATIENCE_SECONDS
        while True:
            try:
                return await self._loop.run_in_executor(self._threads, transact)
            except SQLAlchemyError as error:
                fault = classify_fault(error, self._database.name)
                if fault is None:
                    raise
                if isinstance(fault, StoreError) or self._loop.time() >= end:
                    raise fault from error
            await asyncio.sleep(_PAUSE)

    def _transact(
        self,
        write: bool,
        work: Callable[Concatenate[Transaction, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        with self._database.engine.connect() as plain:
            connection = plain.execution_options(write=write)
            with connection.begin():
                transaction = Transaction(connection)
                result = work(transaction, *args, **kwargs)
                if transaction.on_server:
                    for job_id in transaction.changed:
                        payload = format_notification(self._id, job_id)
                        connection.execute(select(func.pg_notify(CHANNEL, payload)))
        # Called from this thread, so that watchers are notified even if the caller was cancelled meanwhile.
        for job_id in transaction.changed:
            self._loop.call_soon_threadsafe(self._on_change, job_id)
        for job in transaction.ended:
            self._loop.call_soon_threadsafe(self._on_end, job)
        return result


async def open_store(
    location: str,
    on_change: Callable[[str], None],
    clock: Callable[[], float] = time.time,
    *,
    password: str = "",
    on_end: Callable[[Job], None] = lambda _: None,
    lease_seconds: float = 15.0,
    ordering: Ordering = _DEFAULT_ORDERING,
) -> SqlStore:
    """Opens the database, creates a file that does not exist, and migrates an older schema.

    Args:
        location: path of an SQLite file, or URL of a PostgreSQL database without the password.
        on_change: callback in the event loop after each commit that changed a job; receives its id.
        clock: returns the time in Unix seconds.
        on_end: callback in the event loop after the commit that ended a job.
        lease_seconds: time for which this scheduler owns its jobs without extending its lease, in seconds.

    Waits for a server that cannot be reached. Raises StoreError if another process has the file open, or
    the database is not one of this program; PassingFault if the file cannot be opened at present;
    ValueError for a wrong location.
    """
    parsed = parse_location(location, password)
    while True:
        try:
            database = await asyncio.to_thread(open_database, parsed)
            break
        except PassingFault as fault:
            if isinstance(parsed, Path):
                raise
            # The server may start later than this process, whose start is limited as a whole.
            progress.waiting_for = fault.message
            log.warning("waits for the job database", error=fault.message)
        await asyncio.sleep(_START_PAUSE)
    threads = ThreadPoolExecutor(database.threads, thread_name_prefix="job-store")
    store = SqlStore(database, threads, on_change, on_end, clock, lease_seconds, ordering)
    try:
        if database.exclusive:
            # Whoever owned jobs before has ended: the file was free.
            await store._write(statements.take_over, store.scheduler_id)
        await store.keep_lease()
    except BaseException:
        await store.close()
        raise
    return store
