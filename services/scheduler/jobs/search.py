"""Statements that list jobs by conditions, each to be run inside an open transaction.

Every search is led by an index: that of the tenant's jobs, of those in a state, or of those with a label. Its
rows are examined newest first, at most MAX_EXAMINED in a call, so that no search scans the whole history.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chorus_rpc.limits import MAX_EXAMINED
from sqlalchemy import ColumnElement, Select, exists, select

from services.scheduler.jobs.rows import JOB_COLUMNS, Transaction, parse_job
from services.scheduler.jobs.store import JobFilter, JobPage
from services.scheduler.jobs.tables import jobs, labels


def fold_text(text: str) -> str:
    """Returns a text as a search compares it: without case, by Unicode, alike on every database.

    NUL, which PostgreSQL cannot store, is left out.
    """
    return text.casefold().replace("\0", "")


def list_page(
    transaction: Transaction, tenant: str, wanted: JobFilter, before: int | None, limit: int
) -> JobPage:
    connection = transaction.connection
    query, number, bounds = _lead(tenant, wanted)
    if before is not None:
        bounds.append(number < before)
    conditions = list(_conditions(wanted))
    floor = None
    if conditions:
        # The last row that this call may examine; None if there are fewer.
        floor = connection.execute(
            select(number).where(*bounds).order_by(number.desc()).offset(MAX_EXAMINED - 1).limit(1)
        ).scalar_one_or_none()
        if floor is not None:
            bounds.append(number >= floor)
    rows = connection.execute(query.where(*bounds, *conditions).order_by(number.desc()).limit(limit + 1))
    found = [parse_job(row) for row in rows]
    if len(found) > limit:
        return JobPage(found[:limit], found[limit - 1].number)
    return JobPage(found, floor)


def _lead(
    tenant: str, wanted: JobFilter
) -> tuple[Select[Any], ColumnElement[int], list[ColumnElement[bool]]]:
    """Returns the query of a search, the number by which its index is ordered, and the index's conditions."""
    query: Select[Any] = select(*JOB_COLUMNS)
    if not wanted.labels:
        bounds: list[ColumnElement[bool]] = [jobs.c.tenant == tenant]
        if wanted.state is not None:
            bounds.append(jobs.c.state == wanted.state.value)
        return query, jobs.c.number, bounds
    key, value = min(wanted.labels.items())
    query = query.join_from(labels, jobs, labels.c.number == jobs.c.number)
    return (
        query,
        labels.c.number,
        [labels.c.tenant == tenant, labels.c.key == key, labels.c.value == value],
    )


def _conditions(wanted: JobFilter) -> Iterator[ColumnElement[bool]]:
    """Yields the conditions that the leading index does not cover."""
    if wanted.labels and wanted.state is not None:
        yield jobs.c.state == wanted.state.value
    for key, value in sorted(wanted.labels.items())[1:]:
        other = labels.alias()
        yield exists().where(other.c.number == jobs.c.number, other.c.key == key, other.c.value == value)
    if wanted.prompt:
        yield jobs.c.prompt_folded.contains(fold_text(wanted.prompt), autoescape=True)
    if wanted.created_after is not None:
        yield jobs.c.created >= wanted.created_after
    if wanted.created_before is not None:
        yield jobs.c.created < wanted.created_before
