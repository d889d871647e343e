"""Verifies the migrations: the first version's jobs are kept, and the tables are those of the code."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.scheduler.database_location import parse_location
from services.scheduler.jobs.database import open_database
from services.scheduler.jobs.sql_store import open_store
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import OwnedJob, QueueState
from services.scheduler.jobs.tables import metadata
from tests.postgresql import create_database, running_server
from tests.unit.scheduler.jobs.first_schema import add_job, create_first_database


async def test_file_of_the_first_version_keeps_its_jobs(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    create_first_database(path)
    with closing(sqlite3.connect(path)) as db:
        add_job(db, "ended", State.SUCCEEDED, created=100, ended=150)
        add_job(db, "running", State.RUNNING, created=200)
        add_job(db, "queued", State.QUEUED, created=300)
        add_job(db, "waiting", State.WAITING, created=400)
        db.execute("INSERT INTO documents VALUES ('models', x'0102')")
        db.commit()
    store = await open_store(str(path), lambda _: None)
    try:
        assert [job.job_id for job in await store.queue(10)] == ["queued", "waiting"]
        assert await store.queue_state() == QueueState(2, 0.0, 300.0)
        [owned] = (await store.look(0.0, 10, 10)).owned
        assert owned == OwnedJob("running", owned.owner, State.RUNNING)
        assert owned.owner != store.scheduler_id
        assert await store.surplus(10, 151.0, 10) == ["ended"]
        assert await store.surplus(10, 149.0, 10) == []
        assert await store.load_models() == b"\1\2"
        assert len(await store.events("running", 0, 10)) == 1
        page = await store.page("default", None, None, 10)
        assert [job.job_id for job in page] == ["waiting", "queued", "running", "ended"]
    finally:
        await store.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,), "the first version refuses the file"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_migrations_produce_the_tables_of_the_code(kind: str, tmp_path: Path) -> None:
    def check(location: str) -> None:
        database = open_database(parse_location(location, ""))
        try:
            with database.engine.connect() as connection:
                assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        finally:
            database.close()
        open_database(parse_location(location, "")).close()

    if kind == "sqlite":
        check(str(tmp_path / "jobs.db"))
    else:
        with running_server(tmp_path) as server:
            check(create_database(server))
