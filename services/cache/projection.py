"""Places of vectors in a plane: their two main components. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_AXES: Final = 2
# Variance, as a share of the vectors' squared length, below which they count as equal: rounding of float32.
_NOISE: Final = 1e-10


@dataclass(frozen=True)
class Projection:
    """Places in a plane.

    Attributes:
        places: shape [n, 2], −1 to 1. Both axes have one scale, so that distances keep their proportions.
        explained_share: share of the variance of the vectors that the places have, 0 to 1.
    """

    places: NDArray[np.float64]
    explained_share: float


def project(vectors: NDArray[np.float32]) -> Projection:
    """Projects vectors on their two main components. Equal inputs have equal outputs.

    The sign of a component is such that its place with the largest absolute value is positive.

    Args:
        vectors: shape [n, d], at most some hundred rows.
    """
    count = len(vectors)
    places = np.zeros((count, _AXES))
    if count < 2:
        return Projection(places, 1.0)
    values = vectors.astype(np.float64)
    centred = values - values.mean(axis=0)
    total = float((centred**2).sum())
    if total <= _NOISE * float((values**2).sum()):
        return Projection(places, 1.0)
    # The products of the rows have the same components as the covariance of the columns, of which there may
    # be ten times as many.
    strengths, components = np.linalg.eigh(centred @ centred.T)
    for axis in range(min(_AXES, count - 1)):
        strength = max(0.0, float(strengths[-1 - axis]))
        column = components[:, -1 - axis] * np.sqrt(strength)
        if column[np.argmax(np.abs(column))] < 0:
            column = -column
        places[:, axis] = column
    explained = min(1.0, float((places**2).sum()) / total)
    extent = float(np.abs(places).max())
    return Projection(places / extent if extent else places, explained)
