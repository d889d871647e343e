"""Statements that list jobs by conditions, each to be run inside an open transaction.

Every search is led by an index: that of the tenant's jobs, of those in a state, with a label, with a report,
or with a donor. Its rows are examined in the order of the list, at most MAX_EXAMINED in a call, so that no
search scans the whole history. Of labels, reports and donor the one leads whose rows reach furthest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from chorus_rpc.limits import MAX_EXAMINED
from sqlalchemy import ColumnElement, FromClause, exists, select

from services.scheduler.jobs.job_filter import JobFilter
from services.scheduler.jobs.rows import JOB_COLUMNS, Transaction, parse_job
from services.scheduler.jobs.store import JobPage
from services.scheduler.jobs.tables import jobs, labels, reports


@dataclass(frozen=True)
class _Lead:
    """An index that leads a search.

    Attributes:
        source: what the rows are selected from.
        number: number of the job, by which the index is ordered.
        bounds: conditions that select a range of the index.
        key: key of the label that it covers; empty for none.
        covers_state, covers_donor: whether the bounds contain these conditions.
    """

    source: FromClause
    number: ColumnElement[int]
    bounds: Sequence[ColumnElement[bool]]
    key: str = ""
    covers_state: bool = False
    covers_donor: bool = False


def fold_text(text: str) -> str:
    """Returns a text as a search compares it: without case, by Unicode, alike on every database.

    NUL, which PostgreSQL cannot store, is left out.
    """
    return text.casefold().replace("\0", "")


def list_page(
    transaction: Transaction, tenant: str, wanted: JobFilter, beyond: int | None, limit: int
) -> JobPage:
    leads = list(_leads(tenant, wanted))
    last: int | None = None
    if len(leads) == 1 and next(_conditions(wanted, leads[0]), None) is None:
        lead = leads[0]  # every row of the index matches, so that the page is full long before
    else:
        found_last = [(_find_last(transaction, each, wanted, beyond), each) for each in leads]
        # The one that may examine all, or the one that reaches furthest in the order.
        choose = max if wanted.oldest_first else min
        last, lead = next((found for found in found_last if found[0] is None), None) or choose(
            found_last, key=lambda found: found[0] or 0
        )
    conditions = [*_range(lead, wanted, beyond), *_conditions(wanted, lead)]
    if last is not None:
        conditions.append(lead.number <= last if wanted.oldest_first else lead.number >= last)
    rows = transaction.connection.execute(
        select(*JOB_COLUMNS)
        .select_from(lead.source)
        .where(*conditions)
        .order_by(_order(lead, wanted))
        .limit(limit + 1)
    )
    found = [parse_job(row) for row in rows]
    if len(found) > limit:
        return JobPage(found[:limit], found[limit - 1].number)
    return JobPage(found, last)


def _leads(tenant: str, wanted: JobFilter) -> Iterator[_Lead]:
    """Yields the indexes that may lead a search."""
    for key, value in sorted(wanted.labels.items()):
        yield _Lead(
            labels.join(jobs, labels.c.number == jobs.c.number),
            labels.c.number,
            [labels.c.tenant == tenant, labels.c.key == key, labels.c.value == value],
            key,
        )
    if wanted.reported:
        yield _Lead(
            reports.join(jobs, reports.c.number == jobs.c.number),
            reports.c.number,
            [reports.c.tenant == tenant],
        )
    own = jobs.c.tenant == tenant
    if wanted.donor:
        yield _Lead(jobs, jobs.c.number, [own, jobs.c.donor == wanted.donor], covers_donor=True)
    elif wanted.labels or wanted.reported:
        return
    elif wanted.state is not None:
        yield _Lead(jobs, jobs.c.number, [own, jobs.c.state == wanted.state.value], covers_state=True)
    else:
        yield _Lead(jobs, jobs.c.number, [own])


def _find_last(transaction: Transaction, lead: _Lead, wanted: JobFilter, beyond: int | None) -> int | None:
    """Returns the number of the last job that a call may examine; None if it may examine all."""
    last: Any = transaction.connection.execute(
        select(lead.number)
        .where(*_range(lead, wanted, beyond))
        .order_by(_order(lead, wanted))
        .offset(MAX_EXAMINED - 1)
        .limit(1)
    ).scalar_one_or_none()
    return None if last is None else int(last)


def _order(lead: _Lead, wanted: JobFilter) -> ColumnElement[int]:
    return lead.number.asc() if wanted.oldest_first else lead.number.desc()


def _range(lead: _Lead, wanted: JobFilter, beyond: int | None) -> list[ColumnElement[bool]]:
    if beyond is None:
        return [*lead.bounds]
    return [*lead.bounds, lead.number > beyond if wanted.oldest_first else lead.number < beyond]


def _conditions(wanted: JobFilter, lead: _Lead) -> Iterator[ColumnElement[bool]]:
    """Yields the conditions that the leading index does not cover."""
    if wanted.state is not None and not lead.covers_state:
        yield jobs.c.state == wanted.state.value
    if wanted.donor and not lead.covers_donor:
        yield jobs.c.donor == wanted.donor
    for key, value in sorted(wanted.labels.items()):
        if key != lead.key:
            other = labels.alias()
            yield exists().where(other.c.number == jobs.c.number, other.c.key == key, other.c.value == value)
    if wanted.reported and (lead.key or lead.covers_donor):
        yield exists().where(reports.c.number == jobs.c.number)
    if wanted.model_id:
        yield jobs.c.model_id == wanted.model_id
    if wanted.decision:
        yield jobs.c.decision == wanted.decision.value
    if wanted.edit:
        yield jobs.c.edit == wanted.edit
    if wanted.prompt:
        yield jobs.c.prompt_folded.contains(fold_text(wanted.prompt), autoescape=True)
    if wanted.created_after is not None:
        yield jobs.c.created >= wanted.created_after
    if wanted.created_before is not None:
        yield jobs.c.created < wanted.created_before
