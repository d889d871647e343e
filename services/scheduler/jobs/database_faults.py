"""Meaning of the errors of the job database: passing, for good, or a mistake of this program."""

from __future__ import annotations

import sqlite3
from typing import Final

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.scheduler.database_location import PASSWORD_SETTING, SETTING
from services.scheduler.jobs.passing_faults import PassingFault
from services.scheduler.jobs.store import StoreError

_RESOURCE: Final = "the job database"
# Result codes of SQLite's faults that may pass; the file itself is intact.
_SQLITE_PASSING: Final = frozenset(
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
_SQLITE_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# Classes and codes of PostgreSQL, https://www.postgresql.org/docs/current/errcodes-appendix.html. Passing:
# connection, transaction rollback, resources, lock not available, operator intervention, system error, and a
# server that is read-only since another one took over.
_POSTGRESQL_PASSING: Final = ("08", "40", "53", "55", "57", "58", "25006")
_POSTGRESQL_DISK_FULL: Final = "53100"
_POSTGRESQL_DAMAGED: Final = ("XX001", "XX002")
# Refused authorization, or a database that does not exist.
_POSTGRESQL_REFUSED: Final = ("28", "3D", "42501")


def classify_fault(error: SQLAlchemyError, name: str) -> PassingFault | StoreError | None:
    """Returns the fault that the database reported; None for a mistake of this program.

    Args:
        name: location of the database, for people.
    """
    if isinstance(error, PoolTimeout):
        return PassingFault(_RESOURCE, SETTING, "no connection became free in time")
    cause = error.orig if isinstance(error, DBAPIError) else None
    if isinstance(cause, sqlite3.Error):
        return _classify_sqlite(cause, name)
    if isinstance(cause, psycopg.Error):
        return _classify_postgresql(cause, name)
    return None


def _classify_sqlite(error: sqlite3.Error, name: str) -> PassingFault | StoreError | None:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
    if code in _SQLITE_DAMAGED:
        return _make_damaged(name, error)
    if code in _SQLITE_PASSING:
        return PassingFault(_RESOURCE, SETTING, str(error), disk_full=code == sqlite3.SQLITE_FULL)
    return None


def _classify_postgresql(error: psycopg.Error, name: str) -> PassingFault | StoreError | None:
    state = error.sqlstate or ""
    message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if state in _POSTGRESQL_DAMAGED:
        return _make_damaged(name, error)
    if state.startswith(_POSTGRESQL_REFUSED) or (not state and "authentication failed" in message):
        return StoreError(
            f"the job database {name} refuses this scheduler: {message}; check {SETTING} and"
            f" {PASSWORD_SETTING}"
        )
    # Without a code the server was not reached, or the connection broke.
    if state.startswith(_POSTGRESQL_PASSING) or (not state and isinstance(error, psycopg.OperationalError)):
        return PassingFault(_RESOURCE, SETTING, message, disk_full=state == _POSTGRESQL_DISK_FULL)
    return None


def _make_damaged(name: str, error: Exception) -> StoreError:
    return StoreError(
        f"the job database {name} is damaged: {error}; restore a copy, or set another {SETTING}"
    )
