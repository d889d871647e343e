"""Entries added up by the time of their admission. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MINUTE_MS: Final = 60_000
_HOUR_MS: Final = 60 * _MINUTE_MS
_DAY_MS: Final = 24 * _HOUR_MS


@dataclass(frozen=True)
class Point:
    """Entries admitted before a time, in milliseconds since the epoch, and their size in bytes."""

    time_ms: int
    entries: int
    size_bytes: int


@dataclass(frozen=True)
class Growth:
    """Points in even steps, of `step_ms` milliseconds. The first one has no entries, the last one all."""

    step_ms: int
    points: tuple[Point, ...]


def add_up(created_ms: NDArray[np.int64], sizes: NDArray[np.int64], limit: int) -> Growth:
    """Adds up entries in the shortest step with at most `limit` points; none without entries.

    Args:
        created_ms: time of each admission, in milliseconds since the epoch, at least 0.
        sizes: size of each entry, in bytes, in the same order.
        limit: upper bound on the number of points, at least 2.
    """
    if not len(created_ms):
        return Growth(_MINUTE_MS, ())
    first, last = int(created_ms.min()), int(created_ms.max())
    step = next(step for step in _steps() if last // step - first // step + 2 <= limit)
    times = np.arange(first // step, last // step + 2, dtype=np.int64) * step
    order = np.argsort(created_ms, kind="stable")
    before = np.searchsorted(created_ms[order], times, side="left")
    totals = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[order], dtype=np.int64)])
    return Growth(
        step,
        tuple(
            Point(int(time), int(entries), int(totals[entries]))
            for time, entries in zip(times, before, strict=True)
        ),
    )


def _steps() -> Iterator[int]:
    yield _MINUTE_MS
    yield _HOUR_MS
    days = 1
    while True:
        yield days * _DAY_MS
        days *= 2
