"""Result files of the benches in `bench/results/`, in the evaluation's format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

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
    "quantile",
    "ratio",
    "read",
    "share",
    "single",
    "versions",
    "write",
]

RESULTS: Final = ROOT / "bench" / "results"


def paired(outcomes: Sequence[tuple[bool, bool]]) -> Figure:
    """Computes the difference of two paired proportions, first minus second, in percentage points.

    The interval is Newcombe's square-and-add of Wilson intervals, which has a positive width even if both
    outcomes are equal in every pair, with φ corrected for continuity. Source: R. G. Newcombe, Statistics in
    Medicine 17 (1998) 2635, method 10.

    Args:
        outcomes: n ≥ 1 pairs of outcomes.
    """
    n, first, second = len(outcomes), sum(a for a, _ in outcomes), sum(b for _, b in outcomes)
    both = sum(a and b for a, b in outcomes)
    neither = n - first - second + both
    spread = math.sqrt(first * (n - first) * second * (n - second))
    covariance = both * neither - (first - both) * (second - both)
    phi = (max(0.0, covariance - n / 2) if covariance > 0 else covariance) / spread if spread else 0.0
    (down, up), (down2, up2) = _margins(share(first, n)), _margins(share(second, n))
    value = (first - second) / n
    low = value - math.sqrt(max(0.0, down**2 - 2 * phi * down * up2 + up2**2))
    high = value + math.sqrt(max(0.0, up**2 - 2 * phi * up * down2 + down2**2))
    return Figure(100 * value, "percentage points", n, (100 * low, 100 * high))


def quantile(values: Sequence[float], level: float, unit: str) -> Figure:
    """Computes a quantile and its interval between two order statistics, which assumes no distribution.

    The interval is None if there are too few values for one: fewer than 368 at a level of 0.99.

    Args:
        values: n ≥ 1 independent measurements.
        level: Level of the quantile, above 0 and below 1.
    """
    ordered, n = sorted(values), len(values)
    # The k-th smallest value is at most the quantile with the probability that k or more values are.
    counts = [
        math.exp(
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(level)
            + (n - k) * math.log1p(-level)
        )
        for k in range(n + 1)
    ]
    below = np.cumsum(counts)
    low = int(np.searchsorted(below, 0.025, side="right"))
    high = int(np.searchsorted(below, 0.975)) + 1
    interval = (ordered[low - 1], ordered[high - 1]) if low >= 1 and high <= n else None
    return Figure(float(np.quantile(ordered, level)), unit, n, interval)


def _margins(figure: Figure) -> tuple[float, float]:
    assert figure.ci95 is not None
    low, high = figure.ci95
    return figure.value - low, high - figure.value
