"""Tests that jobs in a database of an earlier version run after the scheduler is upgraded."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import create_engine
from sqlalchemy.engine import URL

from services.scheduler.jobs.database import MIGRATIONS
from services.scheduler.jobs.states import State
from tests.integration.scheduler.fakes import MODEL, STEPS, VIDEO
from tests.integration.scheduler.world import World, check_sequence, kinds
from tests.unit.scheduler.jobs.first_schema import add_job, create_first_database

JOBS = {
    "queued": State.QUEUED,
    "queued-later": State.QUEUED,
    "waiting": State.WAITING,
    "running": State.RUNNING,  # in the process that the upgrade ended
}


def create_second_database(path: Path) -> None:
    """Creates the tables of revision 0002, the first with the order of the queue."""
    engine, config = create_engine(URL.create("sqlite", database=str(path))), Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    engine.dispose()


def order_jobs(db: sqlite3.Connection) -> None:
    """Fills the columns that revision 0002 has in addition to those of the first version."""
    db.execute(
        "UPDATE jobs SET created = number, order_key = number, queue_key = number WHERE state IN (1, 2)"
    )
    db.execute("UPDATE jobs SET created = number, owner = 'of-the-earlier-version' WHERE state = 3")
    db.commit()


@pytest.mark.parametrize("create", [create_first_database, create_second_database])
async def test_jobs_of_an_earlier_version_run(tmp_path: Path, create: Callable[[Path], None]) -> None:
    path, created = tmp_path / "jobs.db", int(time.time()) - 60
    create(path)
    with closing(sqlite3.connect(path)) as db:
        for number, (job_id, state) in enumerate(JOBS.items()):
            # As accepted: with the defaults filled in.
            spec = pb.GenerationSpec(
                prompt=f"prompt of {job_id}",
                model_id=MODEL.model_id,
                shape=MODEL.default_shape,
                steps=STEPS,
                seed=number,
                schedule=MODEL.default_schedule,
                reuse=plan_pb2.REUSE_POLICY_BALANCED,
                deadline=Timestamp(seconds=created + 3600),
            )
            add_job(db, job_id, state, created=created + number, tenant="acme", spec=spec)
        if create is create_second_database:
            order_jobs(db)
    settings = {"CHORUS_SCHEDULER_LEASE_SECONDS": "2", "CHORUS_SCHEDULER_WAIT_FOR_DONORS": "false"}
    async with World(tmp_path, settings) as world:
        for job_id in JOBS:
            generation = pb.Generation(generation_id=job_id)
            events = await world.events(generation)
            check_sequence(events)
            assert kinds(events)[-1] == "succeeded", (job_id, world.process.tail())
            assert (await world.get(generation)).state == pb.GENERATION_STATE_SUCCEEDED
            assert (await world.video(generation))[1] == VIDEO
        ran = [request.generation_id for request in world.denoiser.requests]
        assert sorted(ran) == sorted(JOBS), "each once"
        assert ran.index("queued") < ran.index("queued-later")
