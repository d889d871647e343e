"""Verifies on SQLite that what a job needs is found by indexes that do not grow with the jobs that ended."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from chorus.scheduler.v1 import scheduler_pb2 as pb
from sqlalchemy import event as sql_event

from services.scheduler.jobs.job_filter import JobFilter
from services.scheduler.jobs.ordering import Priority
from services.scheduler.jobs.sql_store import SqlStore, open_store
from services.scheduler.jobs.states import IN_QUEUE, UNFINISHED
from services.scheduler.jobs.store import NewJob

PLANNED = pb.GenerationEvent(planned=pb.PlannedEvent())
END = pb.GenerationEvent(cancelled=pb.CancelledEvent())
# Indexes of the jobs that have not ended, and searches for single jobs or by the range that is asked for.
BOUNDED = re.compile(
    r"USING (COVERING )?INDEX (jobs_in_queue|jobs_by_deadline|jobs_by_owner)\b"
    r"|\(id=\?\)|\(rowid=\?\)|\(tenant=\? AND (request_id=\?|number[<>]\?|state=\?|donor=\?)"
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(str(tmp_path / "jobs.db"), lambda _: None)
    yield store
    await store.close()


def new_job(job_id: str, tenant: str) -> NewJob:
    return NewJob(job_id, tenant, job_id, "", pb.GenerationSpec(prompt="red"), 4e9, "", "")


async def test_no_statement_of_a_job_reads_those_that_have_ended(store: SqlStore, tmp_path: Path) -> None:
    executed: list[tuple[str, object]] = []

    def record(_: object, __: object, statement: str, parameters: object, *___: object) -> None:
        executed.append((statement, parameters))

    sql_event.listen(store._database.engine, "before_cursor_execute", record)
    for tenant in ("acme", "studio"):
        await store.submit(new_job(f"{tenant}-1", tenant), 100, tenant_limit=10)
        await store.submit_all([new_job(f"{tenant}-2", tenant)], 100, 10, least_seconds=1.0)
    await store.find("acme", "acme-1")
    await store.expect_wait("acme", Priority.NORMAL, 1.0)
    await store.next_unestimated()
    await store.estimate("acme-2", 1.0)
    await store.positions(["acme-2"])
    await store.queue_state()
    await store.queue(10)
    await store.look(time.time(), 10, 10, 2)
    await store.outlook(10)
    await store.change_priority("acme-2", Priority.HIGH)
    await store.claim("acme-1", 2)
    await store.advance("acme-1", {*IN_QUEUE, *UNFINISHED}, [PLANNED], owner=store.scheduler_id)
    await store.advance("acme-1", UNFINISHED, [END])
    await store.set_report("acme-1", pb.ProblemReport(problem=pb.REPORTED_PROBLEM_OTHER))
    await store.events("acme-1", 0, 10)
    await store.page("acme", JobFilter(), None, 10)
    await store.page("acme", JobFilter(donor="acme-1"), None, 10)
    with sqlite3.connect(tmp_path / "jobs.db") as db:
        for statement, parameters in executed:
            if not statement.startswith(("SELECT", "UPDATE", "DELETE")):
                continue
            for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", parameters):  # type: ignore[arg-type]
                # A page in the order of the index ends at its limit.
                paged = (
                    "ORDER BY jobs.number DESC" in statement and "INDEX jobs_by_tenant (tenant=?)" in row[-1]
                )
                if re.search(r"\bjobs\b|\bjobs_1\b", row[-1]) and not paged:
                    assert BOUNDED.search(row[-1]), (row[-1], statement)
    assert len(executed) > 40
