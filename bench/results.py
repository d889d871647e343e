"""Result files of the benches in `bench/results/`, in the evaluation's format."""

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


def _margins(figure: Figure) -> tuple[float, float]:
    assert figure.ci95 is not None
    low, high = figure.ci95
    return figure.value - low, high - figure.value
