"""Places of new jobs in the queue, to be computed inside an open transaction.

Tenants share the queue fairly: a job comes before those jobs of other tenants that exceed their share. Its
tenant has had as much of the queue's work before it as each of the others, within a class of priority.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Connection, bindparam, func, select

from services.scheduler.jobs.ordering import Ordering, Priority
from services.scheduler.jobs.rows import WAITING
from services.scheduler.jobs.tables import jobs

# Grouped by an expression: for the column itself SQLite reads an index of all jobs, in the order of tenants.
_tenant: Final = jobs.c.tenant.concat("")
_SHARES: Final = (
    select(_tenant, jobs.c.priority, func.count(), func.sum(jobs.c.work))
    .where(WAITING)
    .group_by(_tenant, jobs.c.priority)
)
_others: Final = (
    select(
        jobs.c.queue_key,
        jobs.c.number,
        func.sum(jobs.c.work).over(order_by=(jobs.c.queue_key, jobs.c.number)).label("upto"),
    )
    .where(WAITING, jobs.c.priority == bindparam("priority"), jobs.c.tenant != bindparam("tenant"))
    .subquery()
)
_FIRST_BEYOND_SHARE: Final = (
    select(_others.c.queue_key)
    .where(_others.c.upto > bindparam("share"))
    .order_by(_others.c.queue_key, _others.c.number)
    .limit(1)
)
_WORK_BEFORE: Final = select(func.coalesce(func.sum(jobs.c.work), 0.0)).where(
    WAITING, jobs.c.queue_key <= bindparam("order_key"), jobs.c.estimated >= bindparam("least")
)


@dataclass(frozen=True)
class Shares:
    """The queue as a tenant's new job of a class finds it.

    Attributes:
        waiting: number of jobs that wait.
        backlog: expected seconds of their runs, together.
        own: expected seconds of those of the tenant in the class.
        others: number of other tenants with jobs in the class.
    """

    tenant: str
    priority: Priority
    waiting: int
    backlog: float
    own: float
    others: int

    def add(self, work: float) -> Shares:
        """Returns the shares with one more job of the tenant in the class."""
        return replace(self, waiting=self.waiting + 1, backlog=self.backlog + work, own=self.own + work)


def read_shares(connection: Connection, tenant: str, priority: Priority) -> Shares:
    """Reads the queue for a tenant's jobs of a class."""
    rows = connection.execute(_SHARES).all()
    in_class = [(each, work) for each, number, _, work in rows if number == priority]
    return Shares(
        tenant,
        priority,
        waiting=sum(count for _, _, count, _ in rows),
        backlog=sum(work for _, _, _, work in rows),
        own=sum(work for each, work in in_class if each == tenant),
        others=sum(each != tenant for each, _ in in_class),
    )


def find_order_key(
    connection: Connection, shares: Shares, work: float, now: float, ordering: Ordering
) -> float:
    """Returns the order key of a new job.

    Args:
        work: expected seconds of its run.
        now: time of its acceptance, in Unix seconds.
    """
    order_key = now + ordering.delay(shares.priority, work, shares.backlog)
    if not shares.others:
        return order_key
    parameters = {
        "priority": shares.priority.value,
        "tenant": shares.tenant,
        "share": shares.own * shares.others,
    }
    beyond = connection.execute(_FIRST_BEYOND_SHARE, parameters).scalar_one_or_none()
    # Among equal keys the job that was accepted first comes first.
    return order_key if beyond is None else min(order_key, math.nextafter(beyond, -math.inf))


def read_wait(
    connection: Connection, shares: Shares, work: float, now: float, ordering: Ordering, *, at_least: bool
) -> float:
    """Returns the expected seconds in the queue of a new job.

    Args:
        work: expected seconds of its run.
        at_least: whether to count only jobs whose work was estimated, so that the result is a lower bound as
            far as estimates can be.
    """
    order_key = find_order_key(connection, shares, work, now, ordering)
    before = connection.execute(_WORK_BEFORE, {"order_key": order_key, "least": int(at_least)}).scalar_one()
    return float(before) / ordering.slots


def settle_order_key(
    order_key: float,
    created: float,
    priority: Priority,
    backlog: float,
    works: tuple[float, float],
    ordering: Ordering,
) -> float:
    """Returns the order key of a job whose expected work has become known.

    A job that was placed earlier than by its work, for its tenant's share, stays there.

    Args:
        order_key: key of its acceptance.
        created: time of its acceptance, in Unix seconds.
        backlog: as it was then, in seconds.
        works: expected seconds of its run, then and now.
    """
    before, after = (created + ordering.delay(priority, work, backlog) for work in works)
    return min(order_key, after) if order_key < before else after
