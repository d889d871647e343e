"""Job store in one SQLite file: write-ahead log, every commit synced, one thread owns the connection."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from chorus.scheduler.v1 import scheduler_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.scheduler.jobs import states
from services.scheduler.jobs.database import classify_fault, open_database
from services.scheduler.jobs.states import ENDED, IN_QUEUE, UNFINISHED, State
from services.scheduler.jobs.store import Job, JobStore, NewJob, QueuedJob, QueueFull, StoreError

P = ParamSpec("P")
R = TypeVar("R")

# Time for which a call is repeated when a fault may pass, and the pause in between, in seconds.
_PATIENCE_SECONDS = 2.0
_PAUSE = 0.1
_JOB = "id, number, tenant, body_digest, state, traceparent, crashes, generation"
_MODELS = "models"


class SqliteStore(JobStore):
    """Job store in SQLite, created by `open_store` and closed by its owner."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        lock: int,
        thread: ThreadPoolExecutor,
        path: Path,
        on_change: Callable[[str], None],
        on_end: Callable[[Job], None],
        clock: Callable[[], float],
    ) -> None:
        self._db = connection
        self._path = path
        self._lock = lock
        self._thread = thread
        self._clock = clock
        loop = asyncio.get_running_loop()

        def changed(job_id: str) -> None:
            # Called from the database's thread, so that watchers are notified even if the caller was
            # cancelled during its commit.
            loop.call_soon_threadsafe(on_change, job_id)

        def ended(job: Job) -> None:
            loop.call_soon_threadsafe(on_end, job)

        self._changed = changed
        self._ended = ended

    async def submit(self, new: NewJob, queue_limit: int) -> tuple[Job, bool]:
        return await self._run(self._submit, new, queue_limit)

    async def find(self, tenant: str, request_id: str) -> Job | None:
        return await self._run(self._select_one, "tenant = ? AND request_id = ?", tenant, request_id)

    async def get(self, job_id: str) -> Job | None:
        return await self._run(self._select_one, "id = ?", job_id)

    async def page(self, tenant: str, state: State | None, before: int | None, limit: int) -> list[Job]:
        return await self._run(self._page, tenant, state, before, limit)

    async def unfinished(self) -> list[QueuedJob]:
        return await self._run(self._unfinished)

    async def advance(
        self,
        job_id: str,
        expect: Collection[State],
        events: Sequence[pb.GenerationEvent],
        *,
        crashed: bool = False,
    ) -> Job | None:
        return await self._run(self._advance, job_id, expect, events, crashed)

    async def events(self, job_id: str, after: int, limit: int) -> list[pb.GenerationEvent]:
        return await self._run(self._events, job_id, after, limit)

    async def surplus(self, keep: int) -> list[str]:
        return await self._run(self._surplus, keep)

    async def forget(self, job_ids: Sequence[str]) -> None:
        await self._run(self._forget, job_ids)

    async def save_models(self, data: bytes) -> None:
        await self._run(self._save_models, data)

    async def load_models(self) -> bytes:
        return await self._run(self._load_models)

    async def close(self) -> None:
        await self._run(self._db.close)
        self._thread.shutdown()
        os.close(self._lock)

    async def _run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs `work` in the database's thread, again while a fault may pass.

        Raises PassingFault, or StoreError if the database is damaged.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + _PATIENCE_SECONDS
        while True:
            try:
                return await loop.run_in_executor(self._thread, lambda: work(*args, **kwargs))
            except sqlite3.Error as error:
                fault = classify_fault(error, self._path)
                if fault is None:
                    raise
                if isinstance(fault, StoreError) or loop.time() >= end:
                    raise fault from error
            await asyncio.sleep(_PAUSE)

    # Everything below runs in the database's thread.

    def _submit(self, new: NewJob, queue_limit: int) -> tuple[Job, bool]:
        with self._transaction():
            known = self._select_one("tenant = ? AND request_id = ?", new.tenant, new.request_id)
            if known is not None:
                return known, False
            (waiting,) = self._db.execute(
                f"SELECT count(*) FROM jobs WHERE state IN ({_placeholders(IN_QUEUE)})", [*IN_QUEUE]
            ).fetchone()
            if waiting >= queue_limit:
                raise QueueFull
            now = self._now()
            generation = pb.Generation(
                generation_id=new.job_id,
                request_id=new.request_id,
                spec=new.spec,
                state=pb.GENERATION_STATE_QUEUED,
                create_time=now,
                trace_id=new.trace_id,
                seed_chosen=new.seed_chosen,
            )
            event = pb.GenerationEvent(
                sequence=1, time=now, queued=pb.QueuedEvent(queue_position=waiting + 1)
            )
            states.apply(generation, event)
            number = self._db.execute(
                "INSERT INTO jobs (id, tenant, request_id, body_digest, state, deadline, traceparent,"
                " announced, generation) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    new.job_id,
                    new.tenant,
                    new.request_id,
                    new.body_digest,
                    State.QUEUED,
                    new.deadline,
                    new.traceparent,
                    waiting + 1,
                    generation.SerializeToString(),
                ),
            ).lastrowid
            self._append(number, event)
            job = self._select_one("number = ?", number)
        assert job is not None
        self._changed(new.job_id)
        return job, True

    def _advance(
        self, job_id: str, expect: Collection[State], events: Sequence[pb.GenerationEvent], crashed: bool
    ) -> Job | None:
        with self._transaction():
            job = self._select_one("id = ?", job_id)
            if job is None or job.state not in expect:
                return None
            former = job.state
            announced = None
            now = self._now()
            for sequence, content in enumerate(events, job.generation.last_sequence + 1):
                event = pb.GenerationEvent()
                event.CopyFrom(content)
                event.sequence = sequence
                event.time.CopyFrom(now)
                states.apply(job.generation, event)
                self._append(job.number, event)
                if event.HasField("queued"):
                    announced = event.queued.queue_position
            # The only statement that may end a job, and only from the state that was checked above.
            updated = self._db.execute(
                "UPDATE jobs SET state = ?, generation = ?, crashes = crashes + ?,"
                " announced = coalesce(?, announced) WHERE number = ? AND state = ?",
                (
                    job.generation.state,
                    job.generation.SerializeToString(),
                    int(crashed),
                    announced,
                    job.number,
                    job.state,
                ),
            )
            if updated.rowcount != 1:
                raise StoreError(f"job {job_id} changed inside a transaction")
            job = self._select_one("number = ?", job.number)
        self._changed(job_id)
        if job is not None and job.state in ENDED and former not in ENDED:
            self._ended(job)
        return job

    def _append(self, number: int | None, event: pb.GenerationEvent) -> None:
        self._db.execute(
            "INSERT INTO events (number, sequence, event) VALUES (?, ?, ?)",
            (number, event.sequence, event.SerializeToString()),
        )

    def _select_one(self, where: str, *values: object) -> Job | None:
        row = self._db.execute(f"SELECT {_JOB} FROM jobs WHERE {where}", values).fetchone()
        return None if row is None else _parse_job(row)

    def _page(self, tenant: str, state: State | None, before: int | None, limit: int) -> list[Job]:
        rows = self._db.execute(
            f"SELECT {_JOB} FROM jobs WHERE tenant = ? AND (? IS NULL OR state = ?)"
            " AND (? IS NULL OR number < ?) ORDER BY number DESC LIMIT ?",
            (tenant, state, state, before, before, limit),
        )
        return [_parse_job(row) for row in rows]

    def _unfinished(self) -> list[QueuedJob]:
        rows = self._db.execute(
            "SELECT id, number, state, deadline, announced FROM jobs"
            f" WHERE state IN ({_placeholders(UNFINISHED)}) ORDER BY number",
            [*UNFINISHED],
        )
        return [QueuedJob(job_id, number, State(state), *rest) for job_id, number, state, *rest in rows]

    def _events(self, job_id: str, after: int, limit: int) -> list[pb.GenerationEvent]:
        rows = self._db.execute(
            "SELECT event FROM events WHERE number = (SELECT number FROM jobs WHERE id = ?)"
            " AND sequence > ? ORDER BY sequence LIMIT ?",
            (job_id, after, limit),
        )
        return [pb.GenerationEvent.FromString(event) for (event,) in rows]

    def _surplus(self, keep: int) -> list[str]:
        rows = self._db.execute(
            f"SELECT id FROM jobs WHERE state IN ({_placeholders(ENDED)})"
            " ORDER BY number DESC LIMIT -1 OFFSET ?",
            [*ENDED, keep],
        )
        return [job_id for (job_id,) in rows]

    def _forget(self, job_ids: Sequence[str]) -> None:
        with self._transaction():
            for job_id in job_ids:
                self._db.execute(
                    f"DELETE FROM jobs WHERE id = ? AND state IN ({_placeholders(ENDED)})", (job_id, *ENDED)
                )
        for job_id in job_ids:
            self._changed(job_id)

    def _save_models(self, data: bytes) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO documents (name, data) VALUES (?, ?)", (_MODELS, data))

    def _load_models(self) -> bytes:
        row = self._db.execute("SELECT data FROM documents WHERE name = ?", (_MODELS,)).fetchone()
        return b"" if row is None else bytes(row[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # SQLite itself rolls back after some faults, a full disk among them.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _now(self) -> Timestamp:
        now = Timestamp()
        now.FromNanoseconds(int(self._clock() * 1e9))
        return now


async def open_store(
    path: Path,
    on_change: Callable[[str], None],
    clock: Callable[[], float] = time.time,
    *,
    on_end: Callable[[Job], None] = lambda _: None,
) -> SqliteStore:
    """Opens the database, creating it if it does not exist.

    Args:
        on_change: callback in the event loop after each commit that changed a job; receives its id.
        clock: returns the time in Unix seconds.
        on_end: callback in the event loop after the commit that ended a job.

    Raises StoreError if another process has the database open, or it is not a database of this program.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="job-store")
    try:
        connection, lock = await asyncio.get_running_loop().run_in_executor(thread, open_database, path)
    except BaseException:
        thread.shutdown(wait=False)
        raise
    return SqliteStore(connection, lock, thread, path, on_change, on_end, clock)


def _parse_job(row: tuple[str, int, str, str, int, str, int, bytes]) -> Job:
    job_id, number, tenant, body_digest, state, traceparent, crashes, generation = row
    return Job(
        job_id,
        number,
        tenant,
        body_digest,
        State(state),
        traceparent,
        crashes,
        pb.Generation.FromString(generation),
    )


def _placeholders(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))
