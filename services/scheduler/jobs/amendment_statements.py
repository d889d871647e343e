"""Statements that change accepted jobs for their users, each to be run inside an open transaction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from chorus.scheduler.v1 import scheduler_pb2 as pb
from sqlalchemy import bindparam, delete, insert, select, update

from services.scheduler.jobs.deadline import make_timestamp
from services.scheduler.jobs.ordering import Ordering, Priority
from services.scheduler.jobs.placing import find_order_key, read_shares
from services.scheduler.jobs.rows import JOB_COLUMNS, Transaction, parse_job
from services.scheduler.jobs.states import IN_QUEUE, State
from services.scheduler.jobs.store import Job
from services.scheduler.jobs.tables import jobs, reports

_SELECT_FOR_CHANGE: Final = (
    select(*JOB_COLUMNS, jobs.c.created, jobs.c.priority, jobs.c.work, jobs.c.backlog, jobs.c.queue_key)
    .where(jobs.c.id == bindparam("job_id"))
    .with_for_update()
)
_CHANGE: Final = update(jobs).where(jobs.c.number == bindparam("job_number"))
_REMOVE_REPORT: Final = delete(reports).where(reports.c.number == bindparam("job_number"))
_ADD_REPORT: Final = insert(reports)


def set_report(
    transaction: Transaction, job_id: str, report: pb.ProblemReport | None, now: float
) -> Job | None:
    connection = transaction.connection
    row = connection.execute(_SELECT_FOR_CHANGE, {"job_id": job_id}).one_or_none()
    if row is None:
        return None
    job = parse_job(row[: len(JOB_COLUMNS)])
    generation = job.generation
    if job.state is not State.SUCCEEDED or (report is None and not generation.HasField("report")):
        return job
    connection.execute(_REMOVE_REPORT, {"job_number": job.number})
    if report is None:
        generation.ClearField("report")
    else:
        generation.report.CopyFrom(report)
        generation.report.report_time.CopyFrom(make_timestamp(now))
        connection.execute(_ADD_REPORT, {"number": job.number, "tenant": job.tenant})
    _store(transaction, job, {})
    return job


def change_priority(
    transaction: Transaction, job_id: str, priority: Priority, ordering: Ordering
) -> Job | None:
    connection = transaction.connection
    row = connection.execute(_SELECT_FOR_CHANGE, {"job_id": job_id}).one_or_none()
    if row is None:
        return None
    job = parse_job(row[: len(JOB_COLUMNS)])
    if job.state not in IN_QUEUE or row.priority == priority:
        return job
    # The job itself is still in its former class, so that it counts for no share of the new one.
    shares = replace(read_shares(connection, job.tenant, priority), backlog=row.backlog)
    order_key = find_order_key(connection, shares, row.work, row.created, ordering)
    # A job that a scheduler prepares has left the queue; it returns to this place if it must.
    queue_key = None if row.queue_key is None else order_key
    job.generation.spec.priority = priority.value
    _store(transaction, job, {"priority": priority.value, "order_key": order_key, "queue_key": queue_key})
    return job


def _store(transaction: Transaction, job: Job, values: dict[str, Any]) -> None:
    values = {**values, "generation": job.generation.SerializeToString()}
    transaction.connection.execute(_CHANGE, {"job_number": job.number, **values})
    transaction.changed.append(job.job_id)
