"""A job database as the first version of the scheduler wrote it, without migrations."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from chorus.scheduler.v1 import scheduler_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.scheduler.jobs.states import State

SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    request_id TEXT NOT NULL,
    body_digest TEXT NOT NULL,
    state INTEGER NOT NULL,
    deadline REAL NOT NULL,
    traceparent TEXT NOT NULL,
    announced INTEGER NOT NULL,
    crashes INTEGER NOT NULL DEFAULT 0,
    generation BLOB NOT NULL,
    UNIQUE (tenant, request_id)
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE INDEX jobs_by_tenant ON jobs (tenant, number);
CREATE TABLE events (
    number INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    event BLOB NOT NULL,
    PRIMARY KEY (number, sequence)
) STRICT, WITHOUT ROWID;
CREATE TABLE documents (name TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT;
PRAGMA user_version = 1;
"""


def create_first_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(SCHEMA)


def add_job(
    db: sqlite3.Connection,
    job_id: str,
    state: State,
    *,
    created: int,
    ended: int = 0,
    tenant: str = "default",
    spec: pb.GenerationSpec | None = None,
) -> None:
    """Adds a job with one event.

    Args:
        created, ended: Unix seconds; 0 for a job that has not ended.
    """
    generation = pb.Generation(
        generation_id=job_id,
        request_id=f"r-{job_id}",
        spec=spec or pb.GenerationSpec(prompt=job_id),
        state=state.value,
        create_time=Timestamp(seconds=created),
        last_sequence=1,
    )
    if ended:
        generation.end_time.CopyFrom(Timestamp(seconds=ended))
    event = pb.GenerationEvent(
        sequence=1, time=generation.create_time, queued=pb.QueuedEvent(queue_position=1)
    )
    number = db.execute(
        "INSERT INTO jobs (id, tenant, request_id, body_digest, state, deadline, traceparent, announced,"
        " generation) VALUES (?, ?, ?, 'd', ?, ?, '', 1, ?)",
        (
            job_id,
            tenant,
            f"r-{job_id}",
            state.value,
            generation.spec.deadline.seconds or 2e9,
            generation.SerializeToString(),
        ),
    ).lastrowid
    db.execute("INSERT INTO events VALUES (?, 1, ?)", (number, event.SerializeToString()))
    db.commit()
