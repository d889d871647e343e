"""Statements about the jobs that wait for their start, each to be run inside an open transaction.

Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import and_, func, or_, select, update

from services.scheduler.jobs.ordering import Ordering, Priority
from services.scheduler.jobs.rows import JOB_COLUMNS, WAITING, Transaction, parse_job
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import Job, QueuedJob, QueueState
from services.scheduler.jobs.tables import jobs


def list_queue(transaction: Transaction, limit: int) -> list[QueuedJob]:
    rows = transaction.connection.execute(
        select(jobs.c.id, jobs.c.state, jobs.c.deadline, jobs.c.announced)
        .where(WAITING)
        .order_by(jobs.c.queue_key, jobs.c.number)
        .limit(limit)
    )
    return [QueuedJob(job_id, State(state), *rest) for job_id, state, *rest in rows]


def read_queue_state(transaction: Transaction) -> QueueState:
    waiting, work, oldest = transaction.connection.execute(
        select(func.count(), func.sum(jobs.c.work), func.min(jobs.c.created)).where(WAITING)
    ).one()
    return QueueState(waiting, work or 0.0, oldest or 0.0)


def find_unestimated(transaction: Transaction) -> Job | None:
    row = transaction.connection.execute(
        select(*JOB_COLUMNS)
        .where(jobs.c.estimated == 0, WAITING)
        .order_by(jobs.c.queue_key, jobs.c.number)
        .limit(1)
    ).one_or_none()
    return None if row is None else parse_job(row)


def estimate(transaction: Transaction, job_id: str, work: float | None, ordering: Ordering) -> None:
    connection = transaction.connection
    row = connection.execute(
        select(jobs.c.created, jobs.c.priority, jobs.c.backlog, jobs.c.work)
        .where(jobs.c.id == job_id, WAITING)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return
    work = row.work if work is None else work
    order_key = row.created + ordering.delay(Priority(row.priority), work, row.backlog)
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id)
        .values(work=work, estimated=1, order_key=order_key, queue_key=order_key)
    )


def expect_wait(
    transaction: Transaction,
    priority: Priority,
    work: float,
    at_least: bool,
    now: float,
    ordering: Ordering,
) -> float:
    connection = transaction.connection
    total = func.coalesce(func.sum(jobs.c.work), 0.0)
    backlog = connection.execute(select(total).where(WAITING)).scalar_one()
    order_key = now + ordering.delay(priority, work, backlog)
    before = connection.execute(
        select(total).where(jobs.c.queue_key <= order_key, jobs.c.estimated >= int(at_least))
    ).scalar_one()
    return float(before) / ordering.slots


def find_positions(transaction: Transaction, job_ids: Collection[str]) -> dict[str, int]:
    other = jobs.alias()
    before = (
        select(func.count())
        .select_from(other)
        .where(
            or_(
                other.c.queue_key < jobs.c.queue_key,
                and_(other.c.queue_key == jobs.c.queue_key, other.c.number < jobs.c.number),
            )
        )
        .scalar_subquery()
    )
    rows = transaction.connection.execute(select(jobs.c.id, before).where(jobs.c.id.in_(job_ids), WAITING))
    return {job_id: count + 1 for job_id, count in rows}


def list_overdue(transaction: Transaction, now: float, limit: int) -> list[str]:
    rows = transaction.connection.execute(
        select(jobs.c.id)
        .where(jobs.c.ended.is_(None), jobs.c.deadline <= now, WAITING)
        .order_by(jobs.c.deadline)
        .limit(limit)
    )
    return [job_id for (job_id,) in rows]


def find_next_deadline(transaction: Transaction) -> float | None:
    deadline: float | None = transaction.connection.execute(
        select(jobs.c.deadline).where(jobs.c.ended.is_(None), WAITING).order_by(jobs.c.deadline).limit(1)
    ).scalar_one_or_none()
    return deadline
