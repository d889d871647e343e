"""Drawings of the cache, as values of SVG attributes: its growth, and its entries in a plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from chorus_client import GrowthPoint, MappedEntry

_WIDTH: Final = 1000
_MARGIN: Final = 30
_LEAST_HEIGHT: Final = 240
# Smallest number of uses of each class of dots above the first one, whose entries were never used.
_CLASSES: Final = (1, 3, 10)
# Radius of a dot of each class.
_RADII: Final = (7, 9, 12, 16)
# Places nearer than this, as a share of half the width, are one dot.
_NEAR: Final = 0.004


@dataclass(frozen=True)
class Line:
    """A total over time, as `points` of a polyline in a box of 1000 × 100."""

    title: str
    points: str
    total: int


@dataclass(frozen=True)
class Growth:
    """Drawings of what was admitted.

    Attributes:
        begin, end: times of the first and of the last point, in UTC.
        step: time between two points, in words.
    """

    entries: Line
    size: Line
    begin: datetime
    end: datetime
    step: str


def draw_growth(points: Sequence[GrowthPoint], step_seconds: float) -> Growth | None:
    """Returns the drawings; None without entries."""
    if len(points) < 2 or not points[-1].entries:
        return None
    return Growth(
        _draw("Entries", [point.entries for point in points]),
        _draw("Size", [point.bytes for point in points]),
        points[0].time,
        points[-1].time,
        _name_step(step_seconds),
    )


def _draw(title: str, values: Sequence[int]) -> Line:
    total, last = values[-1], len(values) - 1
    points = " ".join(
        f"{_WIDTH * index / last:.1f},{100 - 96 * value / max(1, total):.1f}"
        for index, value in enumerate(values)
    )
    return Line(title, points, total)


def _name_step(seconds: float) -> str:
    names = {60: "minute", 3_600: "hour", 86_400: "day"}
    return names.get(round(seconds)) or f"{seconds / 86_400:.0f} days"


@dataclass(frozen=True)
class Dot:
    """Entries with one place on the map.

    Attributes:
        x, y, radius: circle in the box of the map.
        use: class of use, from 0 (never used) to 3.
        prompt: prompt of the first of them.
        generation_id: generation of the first one; empty if it has none.
        count: number of the entries.
        hits, saved: uses of all, and the seconds that these saved.
    """

    x: float
    y: float
    radius: int
    use: int
    prompt: str
    generation_id: str
    count: int
    hits: int
    saved: float


@dataclass(frozen=True)
class Map:
    """Dots in a box of 1000 × `height`, those with few uses first, so that others cover them."""

    dots: tuple[Dot, ...]
    height: int


def draw_map(entries: Sequence[MappedEntry]) -> Map | None:
    """Returns the map; None without entries."""
    if not entries:
        return None
    groups: dict[tuple[int, int], list[MappedEntry]] = {}
    for entry in entries:
        groups.setdefault((round(entry.x / _NEAR), round(entry.y / _NEAR)), []).append(entry)
    scale = _WIDTH / 2 - _MARGIN
    reach = max(abs(entry.y) for entry in entries)
    height = max(_LEAST_HEIGHT, math.ceil(2 * (reach * scale + _MARGIN)))
    dots = [_make_dot(group, scale, height) for group in groups.values()]
    return Map(tuple(sorted(dots, key=lambda dot: dot.hits)), height)


def _make_dot(group: Sequence[MappedEntry], scale: float, height: int) -> Dot:
    first, hits = group[0], sum(each.hits for each in group)
    use = sum(hits >= least for least in _CLASSES)
    return Dot(
        x=round(_WIDTH / 2 + scale * first.x, 1),
        y=round(height / 2 - scale * first.y, 1),
        radius=_RADII[use],
        use=use,
        prompt=first.prompt or "a prompt that is not kept",
        generation_id=next((each.generation_id for each in group if each.generation_id), ""),
        count=len(group),
        hits=hits,
        saved=sum(each.seconds_saved for each in group),
    )
