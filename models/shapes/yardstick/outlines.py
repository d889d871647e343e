"""Fits moving outlines of the world's shapes to pictures of the share that an object has in each pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from models.shapes.layout import SPECK_RADIUS
from models.shapes.world import FRAMES, SHAPES, SIDE

WINDOW: Final = 40  # pixels, side of the pictures that are compared, around the first guess of the path
# Widths of edges in pixels, with the largest numbers of iterations.
_STEPS: Final = ((5.0, 4), (2.5, 4), (1.5, 4))
_SPECK_STEPS: Final = ((3.0, 5), (1.5, 5))
_SPECK_WINDOW: Final = 20  # pixels
_CONVERGED: Final = 0.02  # pixels; iterations end when no parameter changes by more
_BLURS: Final = (0.0, 0.8, 1.5, 2.5)  # pixels, standard deviations of the blur at which shapes are compared
_HUBER: Final = 0.5  # residual of a share from which on it counts linearly
_LARGEST_CHANGE: Final = torch.tensor([2.0, 2.0, 4.0, 4.0, 1.0])  # pixels per iteration
_RADII: Final = (3.0, 14.0)  # pixels
_SQUARE, _TRIANGLE = math.sqrt(math.pi) / 2, math.sqrt(math.pi / math.sqrt(27))  # inradius over radius


@dataclass(frozen=True)
class Outline:
    """Outlines fitted to N objects.

    Attributes:
        shape: Indices into SHAPES, [N].
        path: Middle of the path (x, y) and travel (x, y), [N, 4].
        radius: Radius of the circle of equal area, [N].
    """

    shape: Tensor
    path: Tensor
    radius: Tensor


def centres(path: Tensor) -> Tensor:
    """Returns the centroids [N, T, 2] on paths [N, 4]."""
    time = torch.linspace(-0.5, 0.5, FRAMES)
    return path[:, None, :2] + path[:, None, 2:] * time[:, None]


def fit_outlines(share: Tensor, weight: Tensor, path: Tensor, radius: Tensor) -> Outline:
    """Fits each shape to objects, and chooses the one with the lowest error.

    Args:
        share: Share of the object in each pixel, about 0..1, [N, T, H, W].
        weight: Weight of each pixel, [N, T, H, W].
        path: First guess of the paths, [N, 4].
        radius: First guess of the radii, [N].
    """
    chosen, fitted = [], []
    for i, first in enumerate(torch.cat([path, radius[:, None]], 1)):
        window = _Window(share[i], weight[i], first, WINDOW)
        outlines = [_descend(window, s, first, _STEPS, movable=5) for s in range(len(SHAPES))]
        shape = min(range(len(SHAPES)), key=[window.error(s, o) for s, o in enumerate(outlines)].__getitem__)
        chosen.append(shape)
        fitted.append(outlines[shape])
    parameters = torch.stack(fitted) if fitted else torch.zeros(0, 5)
    return Outline(torch.tensor(chosen, dtype=torch.int64), parameters[:, :4], parameters[:, 4])


def fit_speck(share: Tensor, weight: Tensor, path: Tensor) -> Tensor:
    """Fits the path [4] of a speck to shares [T, H, W]."""
    first = torch.cat([path, torch.tensor([SPECK_RADIUS])])
    window = _Window(share, weight, first, _SPECK_WINDOW)
    return _descend(window, SHAPES.index("circle"), first, _SPECK_STEPS, movable=4)[:4]


def outline_share(shape: Tensor, centre: Tensor, radius: Tensor, width: float = 1.0) -> Tensor:
    """Computes the share of pixels inside outlines, [N, T, H, W], with edges of a given width.

    Args:
        shape: Indices into SHAPES, [N].
        centre: Centroids, [N, T, 2].
        radius: Radii of the circles of equal area, [N].
        width: Width of edges in pixels.
    """
    if not len(shape):
        return torch.zeros(0, FRAMES, SIDE, SIDE)
    at = torch.arange(SIDE) + 0.5
    x, y = at.view(1, -1), at.view(-1, 1)
    distances = [
        _distance(s, x - c[:, 0].view(-1, 1, 1), y - c[:, 1].view(-1, 1, 1), r)
        for s, c, r in zip(shape.tolist(), centre, radius, strict=True)
    ]
    return (0.5 - torch.stack(distances) / width).clamp(0, 1)


def _distance(shape: int, dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Returns the distance to an outline, negative inside."""
    if SHAPES[shape] == "circle":
        return (dx * dx + dy * dy + 1e-9).sqrt() - radius
    if SHAPES[shape] == "square":
        return torch.maximum(dx.abs(), dy.abs()) - radius * _SQUARE
    return torch.maximum(dx.abs() * (math.sqrt(3) / 2) - dy / 2, dy) - radius * _TRIANGLE


def _slopes(shape: int, dx: Tensor, dy: Tensor) -> Tensor:
    """Returns the derivatives of the distance [P] with respect to x, y and radius, [3, P]."""
    if SHAPES[shape] == "circle":
        distance = (dx * dx + dy * dy + 1e-9).sqrt()
        return torch.stack([-dx / distance, -dy / distance, -torch.ones_like(dx)])
    if SHAPES[shape] == "square":
        wide = dx.abs() > dy.abs()
        return torch.stack([-dx.sign() * wide, -dy.sign() * ~wide, torch.full_like(dx, -_SQUARE)])
    slanted = dx.abs() * (math.sqrt(3) / 2) - dy / 2 > dy
    return torch.stack(
        [
            -dx.sign() * (math.sqrt(3) / 2) * slanted,
            torch.where(slanted, 0.5, -1.0),
            torch.full_like(dx, -_TRIANGLE),
        ]
    )


class _Window:
    """Pictures around a path, in which outlines are compared with the shares of an object.

    Attributes:
        share, weight: Shares and weights of the pixels, [T, side, side].
        x, y: Centres of the columns [T, 1, side] and of the rows [T, side, 1].
    """

    def __init__(self, share: Tensor, weight: Tensor, first: Tensor, side: int) -> None:
        """Cuts windows around the path in `first` [5] out of pictures [T, H, W]."""
        corner = (centres(first[None, :4])[0] - side / 2).round().long().clamp(0, SIDE - side)  # [T, 2]
        steps, frames = torch.arange(side), torch.arange(FRAMES)[:, None, None]
        columns, rows = (corner[:, :1] + steps)[:, None], (corner[:, 1:] + steps)[:, :, None]
        self.share, self.weight = share[frames, rows, columns], weight[frames, rows, columns]
        self.x, self.y, self.side = columns + 0.5, rows + 0.5, side

    def offsets(self, shape: int, outline: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns offsets of columns and rows from the centres, and distances of pixels to the outline."""
        centre = centres(outline[None, :4])[0]
        dx, dy = self.x - centre[:, 0].view(-1, 1, 1), self.y - centre[:, 1].view(-1, 1, 1)
        return dx, dy, _distance(shape, dx, dy, outline[4])

    def error(self, shape: int, outline: Tensor) -> float:
        """Returns the weighted error of an outline at its best degree of blur."""
        shares = (0.5 - self.offsets(shape, outline)[2]).clamp(0, 1)
        errors = []
        for sigma in _BLURS:
            blurred = _blur(shares, sigma) if sigma else shares
            # torch's Huber loss is half of the square.
            bounded = F.huber_loss(blurred, self.share, reduction="none", delta=_HUBER)
            errors.append(float(torch.dot(bounded.flatten(), self.weight.flatten())))
        return min(errors)


def _blur(shares: Tensor, sigma: float) -> Tensor:
    """Blurs windows [T, side, side] with a Gaussian of standard deviation `sigma` pixels."""
    at = torch.arange(shares.shape[-1])
    matrix = torch.exp(-(at[:, None] - at).square() / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    return ((shares @ matrix).mT.contiguous() @ matrix).mT  # faster than products of matrices from the left


def _descend(
    window: _Window, shape: int, outline: Tensor, steps: tuple[tuple[float, int], ...], movable: int
) -> Tensor:
    """Refines the first `movable` parameters of an outline [5] by Gauss-Newton steps, ever sharper."""
    time = torch.linspace(-0.5, 0.5, FRAMES)
    frame = torch.arange(FRAMES).repeat_interleave(window.side**2)
    for width, iterations in steps:
        for _ in range(iterations):
            dx, dy, distance = window.offsets(shape, outline)
            rim = (distance.abs() < width / 2).flatten().nonzero()[:, 0]  # elsewhere the share is constant
            residual = window.share.flatten()[rim] - 0.5 + distance.flatten()[rim] / width
            by_x, by_y, by_radius = _slopes(
                shape, dx.expand_as(distance).flatten()[rim], dy.expand_as(distance).flatten()[rim]
            )
            now = time[frame[rim]]
            slopes = torch.stack([by_x, by_y, by_x * now, by_y * now, by_radius])[:movable] / -width
            weighted = slopes * (window.weight.flatten()[rim] * (_HUBER / residual.abs().clamp_min(_HUBER)))
            normal = weighted @ slopes.T
            normal += torch.diag(0.01 * normal.diagonal() + 1.0)
            change = torch.linalg.solve(normal, weighted @ residual)
            largest = _LARGEST_CHANGE[:movable]
            change = change.clamp(-largest, largest)
            outline = outline.clone()
            outline[:movable] += change
            if movable == 5:
                outline[4].clamp_(*_RADII)
            if float(change.abs().max()) < _CONVERGED:
                break
    return outline
