"""Verifies the order of the queue: classes, short jobs first, and a bounded wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.queue_order import SEEDS, compare, make_trace
from services.scheduler.jobs.ordering import Ordering, Priority

ORDERING = Ordering(slots=2, class_seconds=600.0)
seconds = st.floats(0, 1e5)
priorities = st.sampled_from(Priority)


@given(priorities, seconds, seconds)
def test_delay_is_bounded_by_the_class(priority: Priority, work: float, backlog: float) -> None:
    """A job is overtaken only by jobs accepted within the largest difference of two delays after it."""
    least = {Priority.HIGH: -600.0, Priority.NORMAL: 0.0, Priority.LOW: 600.0}[priority]
    assert least <= ORDERING.delay(priority, work, backlog) <= least + 600.0


@given(priorities, seconds, seconds, seconds)
def test_more_work_never_starts_earlier(priority: Priority, one: float, other: float, backlog: float) -> None:
    less, more = sorted((one, other))
    assert ORDERING.delay(priority, less, backlog) <= ORDERING.delay(priority, more, backlog)


@given(seconds, seconds, seconds, seconds)
def test_class_decides_between_jobs_of_one_moment(
    one: float, other: float, backlog: float, theirs: float
) -> None:
    delays = [
        ORDERING.delay(priority, work, waiting)
        for priority, work, waiting in (
            (Priority.HIGH, one, backlog),
            (Priority.NORMAL, other, theirs),
            (Priority.LOW, one, theirs),
        )
    ]
    assert delays == sorted(delays)


def test_unknown_work_is_first_come_first_served() -> None:
    assert ORDERING.delay(Priority.NORMAL, 0.0, 0.0) == 0.0


def test_short_jobs_gain_and_no_job_loses_much() -> None:
    """The trace of bench/queue_order.py with its first seed."""
    found = compare(make_trace(SEEDS[0], 400))
    assert found.mean_ratio <= 0.75
    assert found.worst_excess <= 0.0
