"""Statements of the outbox, each to be run inside an open transaction.

Times are Unix seconds of the database's clock.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from chorus.scheduler.v1 import scheduler_pb2 as pb
from sqlalchemy import bindparam, delete, func, insert, select, update

from services.scheduler.jobs.outbox import Delivery, OutboxState
from services.scheduler.jobs.rows import Transaction, database_time
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import Job
from services.scheduler.jobs.tables import webhooks

# Event that selects each end of a job, and the type by which the receiver knows it: the Videos API has no
# word of its own for a cancelled video.
_EVENTS: Final = {
    State.SUCCEEDED: (pb.WEBHOOK_EVENT_COMPLETED, "video.completed"),
    State.FAILED: (pb.WEBHOOK_EVENT_FAILED, "video.failed"),
    State.CANCELLED: (pb.WEBHOOK_EVENT_CANCELLED, "video.failed"),
}

# By whether the database is a server; it then skips rows that another scheduler is about to claim.
_FIND_DUE: Final = {
    on_server: select(webhooks, database_time(on_server).label("now"))
    .where(
        webhooks.c.due <= database_time(on_server),
        webhooks.c.tenant.not_in(bindparam("excluded", expanding=True)),
    )
    .order_by(webhooks.c.due, webhooks.c.job_id)
    .limit(1)
    .with_for_update(skip_locked=True, of=webhooks)
    for on_server in (False, True)
}
_NEXT_DUE: Final = {
    on_server: select(func.min(webhooks.c.due) - database_time(on_server)).where(
        webhooks.c.tenant.not_in(bindparam("excluded", expanding=True))
    )
    for on_server in (False, True)
}
_STATE: Final = {
    on_server: select(func.count(), database_time(on_server) - func.min(webhooks.c.created)).select_from(
        webhooks
    )
    for on_server in (False, True)
}


def add_delivery(transaction: Transaction, job: Job) -> None:
    """Adds the delivery about the end of a job, if its specification asks for one."""
    spec = job.generation.spec
    if not spec.HasField("webhook"):
        return
    event, type_name = _EVENTS[job.state]
    if spec.webhook.events and event not in spec.webhook.events:
        return
    now = database_time(transaction.on_server)
    transaction.connection.execute(
        insert(webhooks).values(
            job_id=job.job_id,
            tenant=job.tenant,
            url=spec.webhook.url,
            type=type_name,
            created=now,
            due=now,
        )
    )


def claim_delivery(
    transaction: Transaction, lease_seconds: float, excluded: Collection[str]
) -> Delivery | None:
    connection = transaction.connection
    row = connection.execute(_FIND_DUE[transaction.on_server], {"excluded": list(excluded)}).one_or_none()
    if row is None:
        return None
    connection.execute(
        update(webhooks)
        .where(webhooks.c.job_id == row.job_id)
        .values(due=row.now + lease_seconds, attempts=row.attempts + 1)
    )
    return Delivery(
        job_id=row.job_id,
        tenant=row.tenant,
        url=row.url,
        type=row.type,
        created=row.created,
        age=max(0.0, row.now - row.created),
        attempts=row.attempts + 1,
    )


def finish_delivery(transaction: Transaction, job_id: str) -> bool:
    removed = transaction.connection.execute(delete(webhooks).where(webhooks.c.job_id == job_id))
    return removed.rowcount > 0


def postpone_delivery(transaction: Transaction, delivery: Delivery, seconds: float) -> bool:
    postponed = transaction.connection.execute(
        update(webhooks)
        .where(webhooks.c.job_id == delivery.job_id, webhooks.c.attempts == delivery.attempts)
        .values(due=database_time(transaction.on_server) + seconds)
    )
    return postponed.rowcount > 0


def seconds_to_next(transaction: Transaction, excluded: Collection[str]) -> float | None:
    found = transaction.connection.execute(
        _NEXT_DUE[transaction.on_server], {"excluded": list(excluded)}
    ).scalar_one()
    return None if found is None else float(found)


def count_deliveries(transaction: Transaction, tenant: str) -> int:
    return transaction.connection.execute(
        select(func.count()).select_from(webhooks).where(webhooks.c.tenant == tenant)
    ).scalar_one()


def read_outbox_state(transaction: Transaction) -> OutboxState:
    pending, age = transaction.connection.execute(_STATE[transaction.on_server]).one()
    return OutboxState(pending, max(0.0, age or 0.0))
