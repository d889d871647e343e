"""Fréchet distances between sets of generated videos and renders of the same prompts, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from evaluation.results import Figure
from models.shapes.yardstick.classifier import FEATURES, frechet_distance

Features = Sequence[Sequence[float]]

# Fewer videos do not determine the covariance of the features.
MIN_VIDEOS: Final = 2 * FEATURES
UNIT: Final = "variances"
_RESAMPLES: Final = 300


def distance(videos: Features, renders: Features) -> Figure:
    """Computes the distance of videos from renders of the same requests, and its bootstrap interval.

    Distances of finite sets are above 0 even for one distribution: compare those of equal n only.
    """
    rendered, shown = _tensor(renders), _tensor(videos)
    figure = _bootstrap(lambda i: frechet_distance(rendered[i], shown[i]), len(videos))
    assert figure.ci95 is not None
    return Figure(figure.value, UNIT, figure.n, (max(figure.ci95[0], 0.0), max(figure.ci95[1], 0.0)))


def distance_difference(videos: Features, others: Features, renders: Features) -> Figure:
    """Computes the distance of `videos` from renders minus that of `others`, paired by request."""
    rendered, shown, compared = _tensor(renders), _tensor(videos), _tensor(others)
    return _bootstrap(
        lambda i: frechet_distance(rendered[i], shown[i]) - frechet_distance(rendered[i], compared[i]),
        len(videos),
    )


def _tensor(features: Features) -> Tensor:
    return torch.tensor(features, dtype=torch.float64)


def _bootstrap(statistic: Callable[[Tensor], float], n: int) -> Figure:
    """Computes a statistic of the requests at some indices, and its interval by a bootstrap over requests.

    A resampled set has fewer different videos and therefore a larger distance, so the draws are moved by the
    difference of their mean to the value.
    """
    value = statistic(torch.arange(n))
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor(
        [statistic(torch.randint(n, (n,), generator=generator)) for _ in range(_RESAMPLES)],
        dtype=torch.float64,
    )
    low, high = torch.quantile(draws - draws.mean(), torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Figure(value, UNIT, n, (value + float(low), value + float(high)))
