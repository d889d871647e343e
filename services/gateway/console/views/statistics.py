"""Figures over many generations."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from chorus_client import Generation

from services.gateway.console.views.cards import Badge, find_badge

_MADE: Final[tuple[Badge, ...]] = ("exact", "hit", "miss")


@dataclass(frozen=True)
class Group:
    """Generations that were made in the same way.

    Attributes:
        share: share of those that succeeded, 0 to 1.
        median: median of their time from the start of the run to the video, in seconds.
        slowest: longest such time, in seconds.
        width: the median, in thousandths of the largest one.
    """

    badge: Badge
    count: int
    share: float
    median: float
    slowest: float
    width: float


@dataclass(frozen=True)
class Figures:
    """Figures of the newest generations.

    Attributes:
        reused: share of those that succeeded and reused something, 0 to 1.
        saved, computed: seconds that reuse saved, and that runs took.
        points: running total of the seconds saved, from the oldest to the newest, as `points` of a polyline
            in a box of 1000 × 100; empty if nothing was saved.
    """

    total: int
    succeeded: int
    failed: int
    reused: float
    saved: float
    computed: float
    groups: tuple[Group, ...]
    points: str


@dataclass(frozen=True)
class Today:
    """Generations that were accepted since midnight, UTC.

    Attributes:
        complete: whether all of them were counted; otherwise there were more.
        saved: seconds that reuse saved.
    """

    total: int
    complete: bool
    saved: float

    def price_saved(self, hour_price: float) -> float:
        """Returns the price of the time saved, from that of an hour of a denoiser."""
        return self.saved / 3_600 * hour_price


def build_today(generations: Sequence[Generation], now: datetime, limit: int) -> Today:
    """Returns the figures of the current day.

    Args:
        generations: the newest generations, up to `limit`.
        now: the time, in UTC.
    """
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    today = [each for each in generations if each.created >= midnight]
    return Today(len(today), len(today) < limit, sum(_find_saving(each) for each in today))


def build_figures(generations: Sequence[Generation]) -> Figures:
    """Returns the figures of generations, the newest first."""
    succeeded = [each for each in generations if each.state == "succeeded"]
    times = {
        badge: [each.timings.total_seconds for each in succeeded if find_badge(each) == badge]
        for badge in _MADE
    }
    medians = {badge: statistics.median(each) for badge, each in times.items() if each}
    longest = max(medians.values(), default=0.0)
    groups = tuple(
        Group(
            badge,
            len(times[badge]),
            len(times[badge]) / len(succeeded),
            median,
            max(times[badge]),
            round(1000 * median / longest, 1) if longest else 0.0,
        )
        for badge, median in medians.items()
    )
    saved = [_find_saving(each) for each in reversed(succeeded)]
    return Figures(
        total=len(generations),
        succeeded=len(succeeded),
        failed=sum(each.state == "failed" for each in generations),
        reused=sum(each.hit for each in succeeded) / len(succeeded) if succeeded else 0.0,
        saved=sum(saved),
        computed=sum(each.timings.total_seconds for each in succeeded),
        groups=groups,
        points=_draw_total(saved),
    )


def _find_saving(generation: Generation) -> float:
    return max(0.0, generation.seconds_saved) if generation.state == "succeeded" else 0.0


def _draw_total(values: Sequence[float]) -> str:
    total = sum(values)
    if total <= 0 or len(values) < 2:
        return ""
    points, reached = [], 0.0
    for index, value in enumerate(values):
        reached += value
        points.append(f"{1000 * index / (len(values) - 1):.1f},{100 - 100 * reached / total:.1f}")
    return " ".join(points)
