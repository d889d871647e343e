"""Figures of this project's benches: the evaluation's format, kept in `bench/results/`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from evaluation.results import (
    ROOT,
    Figure,
    commit,
    hardware,
    mean,
    median,
    ratio,
    read,
    share,
    single,
    versions,
    write,
)

__all__ = [
    "RESULTS",
    "ROOT",
    "Figure",
    "commit",
    "hardware",
    "mean",
    "median",
    "paired",
    "ratio",
    "read",
    "share",
    "single",
    "versions",
    "write",
]

RESULTS: Final = ROOT / "bench" / "results"


def paired(outcomes: Sequence[tuple[bool, bool]]) -> Figure:
    """By how many percentage points more of n pairs come true in the first place than in the second.

    Newcombe's square-and-add interval of Wilson's, which has a width even where no pair tells the two apart,
    with φ corrected for continuity. Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 2635, method 10.
    Needs n ≥ 1.
    """
    n, first, second = len(outcomes), sum(a for a, _ in outcomes), sum(b for _, b in outcomes)
    both = sum(a and b for a, b in outcomes)
    neither = n - first - second + both
    spread = math.sqrt(first * (n - first) * second * (n - second))
    alike = both * neither - (first - both) * (second - both)
    phi = (max(0.0, alike - n / 2) if alike > 0 else alike) / spread if spread else 0.0
    (down, up), (down2, up2) = _arms(share(first, n)), _arms(share(second, n))
    value = (first - second) / n
    low = value - math.sqrt(max(0.0, down**2 - 2 * phi * down * up2 + up2**2))
    high = value + math.sqrt(max(0.0, up**2 - 2 * phi * up * down2 + down2**2))
    return Figure(100 * value, "percentage points", n, (100 * low, 100 * high))


def _arms(found: Figure) -> tuple[float, float]:
    assert found.ci95 is not None
    low, high = found.ci95
    return found.value - low, high - found.value
