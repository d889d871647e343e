"""Opens the job database: the lock of an SQLite file or the pool of a PostgreSQL server, and the schema."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from services.scheduler.database_location import SETTING
from services.scheduler.jobs.database_faults import classify_fault
from services.scheduler.jobs.store import StoreError

MIGRATIONS: Final = Path(__file__).parent / "migrations"
# Schema of the files that no migration has touched yet.
_FIRST_VERSION: Final = 1
_FIRST_REVISION: Final = "0001"
# Wait for a lock that another process holds on the file, in seconds. Short, since other calls wait meanwhile.
_BUSY_SECONDS: Final = 0.2
# Connections to a server, and as many threads.
_CONNECTIONS: Final = 4
# Upper bounds on the wait for a connection, a lock and a statement, in seconds.
_CONNECT_SECONDS: Final = 5
_LOCK_SECONDS: Final = 5
_STATEMENT_SECONDS: Final = 20
# Number of the lock that serialises migrations of one database.
_MIGRATION_LOCK: Final = 7_400_001


@dataclass(frozen=True)
class Database:
    """The open job database.

    Attributes:
        name: its location for people, without a password.
        threads: number of threads that may use the engine at once.
        exclusive: whether no other process can use it.
    """

    engine: Engine
    name: str
    threads: int
    exclusive: bool
    _release: Callable[[], None]

    def close(self) -> None:
        self.engine.dispose()
        self._release()


def open_database(location: Path | URL) -> Database:
    """Opens the database, creates the file if need be, and migrates it to the newest schema.

    Raises StoreError if another process has the file open, or it is not a database of this program or of an
    earlier one; PassingFault if the server cannot be reached at present.
    """
    database = _open_file(location) if isinstance(location, Path) else _open_server(location)
    try:
        migrate(database)
    except SQLAlchemyError as error:
        database.close()
        fault = classify_fault(error, database.name)
        raise fault or StoreError(
            f"{SETTING}: the job database {database.name} cannot be opened: {error}"
        ) from error
    except BaseException:
        database.close()
        raise
    return database


def _open_file(path: Path) -> Database:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(path)
    except OSError as error:
        raise StoreError(f"{SETTING}: the job database {path} cannot be opened: {error}") from error
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=StaticPool,
        hide_parameters=True,  # errors reach the log: prompts must not
        connect_args={"isolation_level": None, "timeout": _BUSY_SECONDS, "check_same_thread": False},
    )
    event.listen(engine, "connect", _prepare_file)
    event.listen(engine, "begin", _begin)
    return Database(engine, str(path), threads=1, exclusive=True, _release=lambda: os.close(lock))


def _take_lock(path: Path) -> int:
    """Locks the file: watchers of one scheduler do not hear of changes that another makes to it.

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
            f" or set another {SETTING} for this one; several schedulers share a PostgreSQL database"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _prepare_file(connection: Any, _: object) -> None:
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        # No temporary files, which would need a descriptor and space on another disk.
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """Takes the file's write lock at the beginning of a write, so that it cannot fail half-way."""
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _open_server(url: URL) -> Database:
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_size=_CONNECTIONS,
        max_overflow=0,
        pool_timeout=_CONNECT_SECONDS,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "options": f"-c lock_timeout={_LOCK_SECONDS}s -c statement_timeout={_STATEMENT_SECONDS}s",
            # A peer that vanished is noticed within the time that a statement may take.
            "tcp_user_timeout": 1000 * _STATEMENT_SECONDS,
            "application_name": "chorus-scheduler",
        },
    )
    name = url.render_as_string(hide_password=True)
    return Database(engine, name, threads=_CONNECTIONS, exclusive=False, _release=lambda: None)


def migrate(database: Database) -> None:
    """Migrates the database to the newest schema, in one transaction. Of several schedulers, one does it.

    Raises StoreError if the database belongs to another program, or to a newer version of this one.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.connect() as plain:
        connection = plain.execution_options(write=True)
        with connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            config.attributes["connection"] = connection
            _check_schema(connection, database.name, config)
            command.upgrade(config, "head")


def _check_schema(connection: Connection, name: str, config: Config) -> None:
    """Marks a file from before the migrations with its revision. Raises StoreError as `migrate` does."""
    revision = MigrationContext.configure(connection).get_current_revision()
    remedy = f"run the version that created it, or set another {SETTING}"
    if revision is not None:
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if revision not in known:
            raise StoreError(
                f"the job database {name} has schema {revision}, this program supports up to {max(known)}:"
                f" {remedy}"
            )
        return
    tables = set(inspect(connection).get_table_names())
    version = 0
    if connection.dialect.name == "sqlite":
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version == _FIRST_VERSION and "jobs" in tables:
        command.stamp(config, _FIRST_REVISION)
    elif version or tables & {"jobs", "events", "documents"}:
        raise StoreError(
            f"the job database {name} has schema {version}, which this program does not know: {remedy}"
        )
