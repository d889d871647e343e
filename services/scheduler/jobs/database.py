"""The SQLite file of the job store: its lock, its schema, and the meaning of its errors."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from services.scheduler.jobs.passing_faults import PassingFault
from services.scheduler.jobs.store import StoreError

SCHEMA_VERSION = 1
_SCHEMA = """
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
"""
_SETTING = "CHORUS_SCHEDULER_DATABASE"
# Wait for a lock that another process holds on the file, in seconds. Short, since other calls wait meanwhile.
_BUSY_SECONDS = 0.2
# Result codes of faults that may pass; the file itself is intact.
_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
    }
)
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def open_database(path: Path) -> tuple[sqlite3.Connection, int]:
    """Opens the file, creating it if need be; returns the connection and the descriptor of the lock.

    Raises StoreError if another process has it open, or it is not a database of this program.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(path)
    except OSError as error:
        raise StoreError(
            f"CHORUS_SCHEDULER_DATABASE: the job database {path} cannot be opened: {error}"
        ) from error
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        os.close(lock)
        raise StoreError(
            f"CHORUS_SCHEDULER_DATABASE: the job database {path} cannot be opened: {error}"
        ) from error
    except BaseException:
        os.close(lock)
        raise
    return connection, lock


def _take_lock(path: Path) -> int:
    """Locks the database: two schedulers would run every job twice.

    The lock is released when the process ends, even by SIGKILL.
    """
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise StoreError(
            f"the job database {path} is in use by another scheduler (process {holder}): stop it,"
            " or set another CHORUS_SCHEDULER_DATABASE for this one"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # No temporary files, which would need a descriptor and space on another disk.
    connection.execute("PRAGMA temp_store = MEMORY")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )
    elif version != SCHEMA_VERSION:
        raise StoreError(
            f"the job database {path} has schema {version}, this program supports {SCHEMA_VERSION}:"
            " run the version that created it, or set another CHORUS_SCHEDULER_DATABASE"
        )


def classify_fault(error: sqlite3.Error, path: Path) -> PassingFault | StoreError | None:
    """Returns the fault that SQLite reported: passing, or for good; None for an error of this program."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
    if code in _DAMAGED:
        return StoreError(
            f"the job database {path} is damaged: {error}; restore a copy, or set another {_SETTING}"
        )
    if code in _PASSING:
        return PassingFault("the job database", _SETTING, str(error), disk_full=code == sqlite3.SQLITE_FULL)
    return None
