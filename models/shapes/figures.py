"""Figures of a comparison: shares, ratios and distances, with intervals, from measurements of its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from evaluation.results import Figure, ratio, share
from models.shapes.measure import Measurement
from models.shapes.yardstick.classifier import frechet_distance

_RESAMPLES: Final = 100  # of the distance, whose every draw takes milliseconds

Cell = Sequence[Measurement]


def right_share(cell: Cell, name: str = "all", named: Sequence[bool] | None = None) -> Figure:
    """Computes the share of videos that show an attribute; only of prompts that name it, if given."""
    chosen = [m for i, m in enumerate(cell) if named is None or named[i]]
    return share(sum(m.right[name] for m in chosen), len(chosen))


def right_ratio(cell: Cell, reference: Cell, name: str = "all") -> Figure:
    """Computes the share of videos that show an attribute over that of a reference cell, paired."""
    counts = [[float(m.right[name]) for m in each] for each in (cell, reference)]
    return ratio(counts[0], counts[1])


def kept_share(cell: Cell, name: str = "all") -> Figure:
    """Computes the share of videos that keep the donor's layout."""
    return share(sum(m.kept[name] for m in cell), len(cell))


def mean_figure(values: Sequence[float], unit: str) -> Figure:
    """Computes a mean, without the values that are NaN."""
    present = [v for v in values if v == v]
    return ratio(present, [1.0] * len(present), unit)


def features(cell: Cell) -> Tensor:
    """Returns the features of a cell's videos, [n, F]."""
    return torch.stack([m.features for m in cell])


def distance(cell: Cell, truth: Tensor) -> Figure:
    """Computes the Fréchet distance of a cell to renders of the same prompts."""
    return _resample(lambda i: frechet_distance(truth[i], features(cell)[i]), len(cell), "distance")


def distance_ratio(cell: Cell, reference: Cell, truth: Tensor) -> Figure:
    """Computes a cell's distance to renders over that of a reference cell, paired."""
    above, below = features(cell), features(reference)

    def divide(i: Tensor) -> float:
        return frechet_distance(truth[i], above[i]) / frechet_distance(truth[i], below[i])

    return _resample(divide, len(cell), "x")


def _resample(statistic: Callable[[Tensor], float], n: int, unit: str) -> Figure:
    """Computes a statistic of chosen cases and its bootstrap interval, with a fixed seed.

    Draws with replacement have fewer different cases, which biases a distance upwards. So the interval is
    that of halves drawn without replacement, scaled around the value of all cases: the spread of a half is
    that of the sample of all cases (Politis and Romano, 1994).
    """
    value = statistic(torch.arange(n))
    if n < 8:
        return Figure(value, unit, n)
    g = torch.Generator().manual_seed(0)
    draws = np.array([statistic(torch.randperm(n, generator=g)[: n // 2]) for _ in range(_RESAMPLES)])
    low, high = np.quantile(draws - draws.mean(), [0.025, 0.975])
    return Figure(value, unit, n, (max(0.0, value + float(low)), value + float(high)))
