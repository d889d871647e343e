"""Verifies the drawings of the cache: they stay inside their boxes, and lose no entry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from chorus_client import GrowthPoint, MappedEntry
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.console.views.cache_drawings import draw_growth, draw_map

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
COORDINATES = st.floats(-1, 1)
ENTRIES = st.lists(
    st.builds(
        MappedEntry,
        id=st.just("e"),
        prompt=st.text(max_size=5),
        generation_id=st.sampled_from(["", "gen-1"]),
        hits=st.integers(0, 1 << 40),
        seconds_saved=st.floats(0, 1e6),
        x=COORDINATES,
        y=COORDINATES,
    ),
    min_size=1,
    max_size=30,
)


def grow(*totals: int) -> list[GrowthPoint]:
    return [
        GrowthPoint(BEGIN + timedelta(hours=index), total, 1_000 * total)
        for index, total in enumerate(totals)
    ]


def test_growth_is_a_line_for_entries_and_one_for_bytes() -> None:
    found = draw_growth(grow(0, 1, 4), 3_600)
    assert found is not None
    assert found.entries.points == found.size.points == "0.0,100.0 500.0,76.0 1000.0,4.0"
    assert (found.entries.total, found.size.total, found.step) == (4, 4_000, "hour")
    assert (found.begin, found.end) == (BEGIN, BEGIN + timedelta(hours=2))


@pytest.mark.parametrize("totals", [(), (0,), (0, 0)])
def test_growth_of_nothing_is_not_drawn(totals: tuple[int, ...]) -> None:
    assert draw_growth(grow(*totals), 60) is None


@pytest.mark.parametrize(("seconds", "name"), [(60, "minute"), (86_400, "day"), (4 * 86_400, "4 days")])
def test_step_has_a_name(seconds: float, name: str) -> None:
    found = draw_growth(grow(0, 1), seconds)
    assert found is not None
    assert found.step == name


@given(ENTRIES)
def test_dots_are_inside_the_map_and_stand_for_every_entry(entries: list[MappedEntry]) -> None:
    found = draw_map(entries)
    assert found is not None
    assert sum(dot.count for dot in found.dots) == len(entries)
    assert sum(dot.hits for dot in found.dots) == sum(entry.hits for entry in entries)
    for dot in found.dots:
        assert dot.radius <= dot.x <= 1_000 - dot.radius
        assert dot.radius <= dot.y <= found.height - dot.radius
        assert (dot.use == 0) == (dot.hits == 0)
        assert dot.prompt
    uses = [dot.hits for dot in found.dots]
    assert uses == sorted(uses)


def test_entries_at_one_place_are_one_dot_with_a_link_if_any_has_a_video() -> None:
    entries = [
        MappedEntry("a", "a circle", "", 1, 0.5, 0.5, 0.5),
        MappedEntry("b", "a circle", "gen-2", 2, 1.5, 0.5, 0.5),
        MappedEntry("c", "a square", "gen-3", 0, 0.0, -1.0, -0.5),
    ]
    found = draw_map(entries)
    assert found is not None
    unused, used = found.dots
    assert (used.prompt, used.generation_id, used.count, used.hits, used.saved) == (
        "a circle",
        "gen-2",
        2,
        3,
        2.0,
    )
    assert (unused.x, used.x) == (30.0, 735.0)
    assert used.y < unused.y, "up is up"
    assert draw_map([]) is None
