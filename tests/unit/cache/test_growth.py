"""Verifies how entries are added up over time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cache.growth import Growth, Point, add_up

HOUR, DAY = 3_600_000, 86_400_000
ENTRIES = st.lists(st.tuples(st.integers(0, 4_000_000_000_000), st.integers(0, 1 << 40)), max_size=40)


def grow(entries: list[tuple[int, int]], limit: int) -> Growth:
    created, sizes = zip(*entries, strict=True) if entries else ((), ())
    return add_up(np.array(created, np.int64), np.array(sizes, np.int64), limit)


@given(ENTRIES, st.integers(2, 60))
def test_each_point_counts_what_was_admitted_before_it(entries: list[tuple[int, int]], limit: int) -> None:
    found = grow(entries, limit)
    assert len(found.points) <= limit
    for point in found.points:
        earlier = [size for created, size in entries if created < point.time_ms]
        assert (point.entries, point.size_bytes) == (len(earlier), sum(earlier))
        assert point.time_ms % found.step_ms == 0
    if entries:
        times = [point.time_ms for point in found.points]
        assert {later - earlier for earlier, later in itertools.pairwise(times)} == {found.step_ms}
        assert found.points[0].entries == 0
        assert found.points[-1].entries == len(entries)


def test_nothing_grows_without_entries() -> None:
    assert grow([], 10).points == ()


@pytest.mark.parametrize(
    ("span", "step"),
    [(0, 60_000), (HOUR, 60_000), (3 * HOUR, HOUR), (9 * DAY, DAY), (400 * DAY, 8 * DAY)],
)
def test_step_is_the_shortest_that_fits(span: int, step: int) -> None:
    assert grow([(100 * DAY, 1), (100 * DAY + span, 1)], 64).step_ms == step


def test_points_are_whole_days_of_utc() -> None:
    found = grow([(2 * DAY + 5, 10), (3 * DAY - 1, 20), (5 * DAY, 40)], 6)
    assert found.points == (
        Point(2 * DAY, 0, 0),
        Point(3 * DAY, 2, 30),
        Point(4 * DAY, 2, 30),
        Point(5 * DAY, 2, 30),
        Point(6 * DAY, 3, 70),
    )
