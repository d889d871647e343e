"""Estimates several means together, each from few samples: the random-effects model.

The loss of each kind of edit is measured on tens of pairs, on which its standard error exceeds the policies'
limits. The kinds resemble one another, so each estimate is moved towards the common mean, further the less
the kinds differ in truth. Source: DerSimonian and Laird, Meta-analysis in clinical trials, 1986.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    mean: float
    error: float


def pool(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Moves estimates of similar means towards their common mean.

    Args:
        estimates: Independent estimates, with errors above 0.

    Returns:
        Posterior means and errors in the same order. The error includes that of the common mean, and is not
        above that of the estimate itself.
    """
    means, errors = (np.array([getattr(e, name) for e in estimates]) for name in ("mean", "error"))
    if not len(means):
        return []
    variances = errors**2
    between = _variance_between(means, variances)
    total = 1 / (variances + between)
    common, common_variance = float((means * total).sum() / total.sum()), float(1 / total.sum())
    kept = between * total  # share of each estimate that is kept
    variance = kept * variances + (1 - kept) ** 2 * common_variance
    moved = kept * means + (1 - kept) * common
    return [Estimate(float(m), math.sqrt(v)) for m, v in zip(moved, variance, strict=True)]


def _variance_between(means: np.ndarray, variances: np.ndarray) -> float:
    """Estimates the variance of the true means by the method of moments; 0 if errors explain all."""
    weights = 1 / variances
    common = (means * weights).sum() / weights.sum()
    spread = (weights * (means - common) ** 2).sum() - (len(means) - 1)
    scale = weights.sum() - (weights**2).sum() / weights.sum()
    return max(0.0, float(spread / scale)) if scale > 0 else 0.0
