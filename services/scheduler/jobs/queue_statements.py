"""Statements about the jobs that wait for their start, each to be run inside an open transaction.

Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

from sqlalchemy import and_, bindparam, func, or_, select, update

from services.scheduler.jobs.ordering import Ordering, Priority
from services.scheduler.jobs.placing import read_shares, read_wait, settle_order_key
from services.scheduler.jobs.rows import JOB_COLUMNS, WAITING, Transaction, database_time, parse_job
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import Job, Outlook, OwnedJob, QueuedJob, QueueLook, QueueState
from services.scheduler.jobs.tables import jobs, schedulers

# Statements of every look at the queue are built once: building one takes longer than most take to run.
_STATE: Final = select(func.count(), func.sum(jobs.c.work), func.min(jobs.c.created)).where(WAITING)
_UNESTIMATED: Final = (
    select(*JOB_COLUMNS)
    .where(jobs.c.estimated == 0, WAITING)
    .order_by(jobs.c.queue_key, jobs.c.number)
    .limit(1)
)
_FOR_ESTIMATE: Final = (
    select(jobs.c.created, jobs.c.priority, jobs.c.backlog, jobs.c.work, jobs.c.order_key)
    .where(jobs.c.id == bindparam("job_id"), WAITING)
    .with_for_update()
)
_SET_ESTIMATE: Final = update(jobs).where(jobs.c.id == bindparam("job_id"))
_QUEUED_COLUMNS: Final = (
    jobs.c.id,
    jobs.c.state,
    jobs.c.deadline,
    jobs.c.announced,
    jobs.c.priority,
    jobs.c.queue_key,
)
_LIST_QUEUE: Final = (
    select(*_QUEUED_COLUMNS)
    .where(WAITING)
    .order_by(jobs.c.queue_key, jobs.c.number)
    .limit(bindparam("count"))
)
_OUTLOOK: Final = (
    select(*_QUEUED_COLUMNS, jobs.c.work, jobs.c.estimated)
    .where(WAITING)
    .order_by(jobs.c.queue_key, jobs.c.number)
    .limit(bindparam("count"))
)
_OUTLOOK_OF_OWNED: Final = (
    select(*JOB_COLUMNS, jobs.c.work, jobs.c.estimated)
    .where(jobs.c.owner.is_not(None))
    .limit(bindparam("count"))
)
_LIST_STARTABLE: Final = (
    select(*_QUEUED_COLUMNS)
    .where(WAITING, jobs.c.tenant.not_in(bindparam("tenants", expanding=True)))
    .order_by(jobs.c.queue_key, jobs.c.number)
    .limit(bindparam("count"))
)
# Tenants with at least as many owned jobs as the limit. Grouped by an expression, as in `placing`.
_tenant: Final = jobs.c.tenant.concat("")
_BUSY_TENANTS: Final = (
    select(_tenant)
    .where(jobs.c.owner.is_not(None))
    .group_by(_tenant)
    .having(func.count() >= bindparam("tenant_limit"))
)
_LIST_OVERDUE: Final = (
    select(jobs.c.id)
    .where(jobs.c.deadline <= bindparam("now"), WAITING)
    .order_by(jobs.c.deadline)
    .limit(bindparam("count"))
)
# By whether the database is a server. Not ordered, so that the index of the owned jobs serves it.
_LIST_OWNED: Final = {
    on_server: select(jobs.c.id, jobs.c.owner, jobs.c.state).where(
        jobs.c.owner.is_not(None),
        or_(
            jobs.c.owner == bindparam("own"),
            jobs.c.owner.not_in(
                select(schedulers.c.id).where(schedulers.c.lease_until > database_time(on_server))
            ),
        ),
    )
    for on_server in (False, True)
}
_NEXT_DEADLINE: Final = select(jobs.c.deadline).where(WAITING).order_by(jobs.c.deadline).limit(1)
_other: Final = jobs.alias()
_POSITIONS: Final = select(
    jobs.c.id,
    select(func.count())
    .select_from(_other)
    .where(
        _other.c.queue_key.is_not(None),
        or_(
            _other.c.queue_key < jobs.c.queue_key,
            and_(_other.c.queue_key == jobs.c.queue_key, _other.c.number < jobs.c.number),
        ),
    )
    .scalar_subquery(),
).where(jobs.c.id.in_(bindparam("job_ids", expanding=True)), WAITING)


def list_queue(transaction: Transaction, limit: int) -> list[QueuedJob]:
    return _parse_queue(transaction.connection.execute(_LIST_QUEUE, {"count": limit}))


def _parse_queue(rows: Iterable[Any]) -> list[QueuedJob]:
    return [
        QueuedJob(job_id, State(state), deadline, announced, Priority(priority), order_key)
        for job_id, state, deadline, announced, priority, order_key in rows
    ]


def read_queue_state(transaction: Transaction) -> QueueState:
    waiting, work, oldest = transaction.connection.execute(_STATE).one()
    return QueueState(waiting, work or 0.0, oldest or 0.0)


def find_unestimated(transaction: Transaction) -> Job | None:
    row = transaction.connection.execute(_UNESTIMATED).one_or_none()
    return None if row is None else parse_job(row)


def estimate(transaction: Transaction, job_id: str, work: float | None, ordering: Ordering) -> None:
    connection = transaction.connection
    row = connection.execute(_FOR_ESTIMATE, {"job_id": job_id}).one_or_none()
    if row is None:
        return
    work = row.work if work is None else work
    order_key = settle_order_key(
        row.order_key, row.created, Priority(row.priority), row.backlog, (row.work, work), ordering
    )
    connection.execute(
        _SET_ESTIMATE,
        {
            "job_id": job_id,
            "work": work,
            "estimated": 1,
            "order_key": order_key,
            "queue_key": order_key,
        },
    )


def expect_wait(
    transaction: Transaction,
    tenant: str,
    priority: Priority,
    work: float,
    at_least: bool,
    now: float,
    ordering: Ordering,
) -> float:
    connection = transaction.connection
    shares = read_shares(connection, tenant, priority)
    return read_wait(connection, shares, work, now, ordering, at_least=at_least)


def read_outlook(transaction: Transaction, limit: int) -> Outlook:
    connection = transaction.connection
    waiting = connection.execute(_OUTLOOK, {"count": limit}).all()
    owned = connection.execute(_OUTLOOK_OF_OWNED, {"count": limit}).all()
    return Outlook(
        waiting=list(
            zip(
                _parse_queue(row[: len(_QUEUED_COLUMNS)] for row in waiting),
                map(_read_work, waiting),
                strict=True,
            )
        ),
        owned=[(parse_job(row[: len(JOB_COLUMNS)]), _read_work(row)) for row in owned],
    )


def _read_work(row: Any) -> float | None:
    """Returns the expected seconds of a run; None if neither a plan nor the model's speed is known."""
    return float(row.work) if row.work or row.estimated else None


def find_positions(transaction: Transaction, job_ids: Collection[str]) -> dict[str, int]:
    rows = transaction.connection.execute(_POSITIONS, {"job_ids": list(job_ids)})
    return {job_id: count + 1 for job_id, count in rows}


def look(
    transaction: Transaction,
    scheduler_id: str,
    now: float,
    limit: int,
    overdue_limit: int,
    tenant_limit: int,
) -> QueueLook:
    connection = transaction.connection
    overdue = connection.execute(_LIST_OVERDUE, {"now": now, "count": overdue_limit}).scalars().all()
    owned = connection.execute(_LIST_OWNED[transaction.on_server], {"own": scheduler_id})
    first = startable = list_queue(transaction, limit)
    if tenant_limit:
        busy = connection.execute(_BUSY_TENANTS, {"tenant_limit": tenant_limit}).scalars().all()
        if busy:
            rows = connection.execute(_LIST_STARTABLE, {"tenants": busy, "count": limit})
            startable = _parse_queue(rows)
    return QueueLook(
        overdue=overdue,
        owned=[OwnedJob(job_id, owner, State(state)) for job_id, owner, state in owned],
        first=first,
        startable=startable,
        next_deadline=connection.execute(_NEXT_DEADLINE).scalar_one_or_none(),
    )
