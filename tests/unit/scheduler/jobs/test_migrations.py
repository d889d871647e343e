"""Verifies the migrations: the first version's jobs are kept, and the tables are those of the code."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL

from services.scheduler.database_location import parse_location
from services.scheduler.jobs.database import MIGRATIONS, open_database
from services.scheduler.jobs.job_filter import Decision, JobFilter
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
        page = await store.page("default", JobFilter(), None, 10)
        assert [job.job_id for job in page.jobs] == ["waiting", "queued", "running", "ended"]
    finally:
        await store.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,), "the first version refuses the file"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_jobs_of_the_second_schema_are_found_by_their_prompts(kind: str, tmp_path: Path) -> None:
    with running_server(tmp_path) if kind == "postgresql" else nullcontext() as server:
        location = create_database(server) if server else str(tmp_path / "jobs.db")
        create_second_database(location, ["A Red Straße", "a nul\0 byte", "blue"])
        store = await open_store(location, lambda _: None)
        try:
            found = {}
            for text in ("STRASSE", "nul byte", "", "green"):
                page = await store.page("default", JobFilter(prompt=text), None, 10)
                found[text] = [job.job_id for job in page.jobs]
            assert found == {"STRASSE": ["j1"], "nul byte": ["j2"], "": ["j3", "j2", "j1"], "green": []}
            assert await store.find("default", "r1") != []
            assert (await store.page("default", JobFilter(labels={"a": "b"}), None, 10)).jobs == []
            assert await store.surplus(0, 0.0, 10) == ["j1", "j2", "j3"]
            await store.forget(["j1", "j2", "j3"])
        finally:
            await store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_jobs_of_the_fifth_schema_are_found_by_what_they_reused(kind: str, tmp_path: Path) -> None:
    donor = plan_pb2.DonorRef(entry_id="e", generation_id="d", score=0.9)
    hit = plan_pb2.Plan(total_steps=4, reuse_steps=2, donor=donor, edit="colour")
    exact = plan_pb2.Plan(total_steps=4, reuse_steps=4, donor=donor)
    generations = [
        pb.Generation(plan=hit, donor=donor, state=State.SUCCEEDED.value),
        pb.Generation(plan=hit, state=State.SUCCEEDED.value),  # whose donor could not be fetched
        pb.Generation(plan=exact, donor=donor, state=State.SUCCEEDED.value),
        pb.Generation(plan=hit, state=State.CANCELLED.value),
        pb.Generation(state=State.CANCELLED.value),
    ]
    for generation in generations:
        generation.spec.model_id = "wan"
    with running_server(tmp_path) if kind == "postgresql" else nullcontext() as server:
        location = create_database(server) if server else str(tmp_path / "jobs.db")
        create_database_with(location, "0005", generations)
        store = await open_store(location, lambda _: None)
        try:
            found = []
            for wanted in (
                *(JobFilter(decision=each) for each in Decision if each),
                JobFilter(edit="colour"),
                JobFilter(donor="d"),
                JobFilter(model_id="wan"),
                JobFilter(model_id="other"),
                JobFilter(reported=True),
            ):
                page = await store.page("default", wanted, None, 10)
                found.append([job.job_id for job in page.jobs])
            assert found == [
                ["j4", "j1"],
                ["j2"],
                ["j3"],
                ["j4", "j2", "j1"],
                ["j4", "j3", "j1"],
                ["j5", "j4", "j3", "j2", "j1"],
                [],
                [],
            ]
            await store.set_report("j1", pb.ProblemReport(problem=pb.REPORTED_PROBLEM_OTHER))
            page = await store.page("default", JobFilter(reported=True), None, 10)
            assert [job.job_id for job in page.jobs] == ["j1"]
        finally:
            await store.close()


def create_second_database(location: str, prompts: Sequence[str]) -> None:
    """Creates a database of revision 0002 with a cancelled job for each prompt."""
    generations = [
        pb.Generation(spec=pb.GenerationSpec(prompt=prompt), state=State.CANCELLED.value)
        for prompt in prompts
    ]
    create_database_with(location, "0002", generations)


def create_database_with(location: str, revision: str, generations: Sequence[pb.Generation]) -> None:
    """Creates a database of a revision with jobs that have ended, from j1 on."""
    parsed = parse_location(location, "")
    engine = create_engine(URL.create("sqlite", database=str(parsed)) if isinstance(parsed, Path) else parsed)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        for number, generation in enumerate(generations, 1):
            generation.generation_id, generation.request_id = f"j{number}", f"r{number}"
            connection.execute(
                text(
                    "INSERT INTO jobs (id, tenant, request_id, body_digest, state, deadline, traceparent,"
                    " announced, generation, created, ended) VALUES (:id, 'default', :request_id, 'd',"
                    " :state, 2e9, '', 1, :generation, 100.0, 150.0)"
                ),
                {
                    "id": generation.generation_id,
                    "request_id": generation.request_id,
                    "state": generation.state,
                    "generation": generation.SerializeToString(),
                },
            )
    engine.dispose()


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
