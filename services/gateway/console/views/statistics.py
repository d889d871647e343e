"""Figures over many generations."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from chorus_client import Generation

from services.gateway.console.views.cards import Badge, find_badge


@dataclass(frozen=True)
class Group:
    """Generations that were made in the same way.

    Attributes:
        share: share of those that succeeded, 0 to 1.
        median: median of their time from the start of the run to the video, in seconds.
        slowest: longest such time, in seconds.
    """

    badge: Badge
    count: int
    share: float
    median: float
    slowest: float


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


def build_figures(generations: Sequence[Generation]) -> Figures:
    """Returns the figures of generations, the newest first."""
    succeeded = [each for each in generations if each.state == "succeeded"]
    groups = []
    for badge in ("exact", "hit", "miss"):
        times = [each.timings.total_seconds for each in succeeded if find_badge(each) == badge]
        if times:
            share = len(times) / len(succeeded)
            groups.append(Group(badge, len(times), share, statistics.median(times), max(times)))
    saved = [max(0.0, each.seconds_saved) for each in reversed(succeeded)]
    return Figures(
        total=len(generations),
        succeeded=len(succeeded),
        failed=sum(each.state == "failed" for each in generations),
        reused=sum(each.hit for each in succeeded) / len(succeeded) if succeeded else 0.0,
        saved=sum(saved),
        computed=sum(each.timings.total_seconds for each in succeeded),
        groups=tuple(groups),
        points=_draw_total(saved),
    )


def _draw_total(values: Sequence[float]) -> str:
    total = sum(values)
    if total <= 0 or len(values) < 2:
        return ""
    points, reached = [], 0.0
    for index, value in enumerate(values):
        reached += value
        points.append(f"{1000 * index / (len(values) - 1):.1f},{100 - 100 * reached / total:.1f}")
    return " ".join(points)
