"""Fits moving outlines of the world's shapes to pictures of the share that an object has in each pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from models.shapes.layout import SPECK_RADIUS
from models.shapes.world import FRAMES, SHAPES, SIDE

WINDOW: Final = 40  # pixels, side of the pictures that are compared, around the first guess of the path
_STEPS: Final = ((5.0, 4), (2.5, 4), (1.5, 4))  # widths of edges in pixels, with the numbers of iterations
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
        error: Mean error of the best shape over the object's area, [N].
    """

    shape: Tensor
    path: Tensor
    radius: Tensor
    error: Tensor


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
    n, shapes = len(path), len(SHAPES)
    window = _Window(share, weight, centres(path), shapes)
    kind = torch.arange(shapes).repeat(n)
    parameters = torch.cat([path, radius[:, None]], 1).repeat_interleave(shapes, 0)
    parameters = _descend(window, kind, parameters, _STEPS, movable=5)
    errors = window.error(kind, parameters).view(n, shapes)
    shape = errors.argmin(1)
    best = parameters.view(n, shapes, 5)[torch.arange(n), shape]
    area = math.pi * best[:, 4].square() * FRAMES
    return Outline(shape, best[:, :4], best[:, 4], errors.amin(1) / area)


def fit_speck(share: Tensor, weight: Tensor, path: Tensor) -> Tensor:
    """Fits the path [4] of a speck to shares [T, H, W]."""
    window = _Window(share[None], weight[None], centres(path[None]), 1)
    parameters = torch.cat([path, torch.tensor([SPECK_RADIUS])])[None]
    return _descend(window, torch.zeros(1, dtype=torch.int64), parameters, ((3.0, 5), (1.5, 5)), movable=4)[
        0, :4
    ]


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


class _Window:
    """Pictures around a path, in which outlines are compared with shares."""

    def __init__(self, share: Tensor, weight: Tensor, centre: Tensor, copies: int) -> None:
        """Cuts windows around `centre` [N, T, 2] out of pictures [N, T, H, W], for `copies` outlines each."""
        n = len(share)
        corner = (centre - WINDOW / 2).round().long().clamp(0, SIDE - WINDOW)  # [N, T, 2]
        steps = torch.arange(WINDOW)
        columns, rows = corner[..., :1] + steps, corner[..., 1:] + steps  # [N, T, WINDOW]
        index = (rows[..., None] * SIDE + columns[..., None, :]).flatten(2)  # [N, T, P]
        self.share = share.flatten(2).gather(2, index)
        self.weight = weight.flatten(2).gather(2, index)
        self.x, self.y = (index % SIDE) + 0.5, (index // SIDE) + 0.5
        self.n, self.copies = n, copies
        self.time = torch.linspace(-0.5, 0.5, FRAMES).view(1, -1)

    def compare(self, kind: Tensor, parameters: Tensor, width: float) -> tuple[Tensor, ...]:
        """Returns residuals and weights [N, S, T, P], and slopes by x, y, radius [N, S, T, 3, P]."""
        mx, my, tx, ty, r = parameters.unbind(1)
        cx, cy = (m[:, None] + t[:, None] * self.time for m, t in ((mx, tx), (my, ty)))
        shape = (self.n, self.copies, FRAMES, 1)
        dx, dy = self.x[:, None] - cx.view(shape), self.y[:, None] - cy.view(shape)
        radius = r.view(self.n, self.copies, 1, 1)
        shares, slopes = [], []
        for s in range(self.copies):  # kinds are the same for all objects
            k = int(kind[s])
            x, y, rr = dx[:, s], dy[:, s], radius[:, s]
            if SHAPES[k] == "circle":
                rho = (x * x + y * y + 1e-9).sqrt()
                distance, by = rho - rr, (-x / rho, -y / rho, -torch.ones_like(x))
            elif SHAPES[k] == "square":
                wide = x.abs() > y.abs()
                distance = torch.where(wide, x.abs(), y.abs()) - rr * _SQUARE
                by = (-x.sign() * wide, -y.sign() * ~wide, torch.full_like(x, -_SQUARE))
            else:
                side = x.abs() * (math.sqrt(3) / 2) - y / 2
                slanted = side > y
                distance = torch.where(slanted, side, y) - rr * _TRIANGLE
                by = (
                    -x.sign() * (math.sqrt(3) / 2) * slanted,
                    torch.where(slanted, 0.5, -1.0),
                    torch.full_like(x, -_TRIANGLE),
                )
            scaled = distance / width
            shares.append((0.5 - scaled).clamp(0, 1))
            inside = (scaled.abs() < 0.5) * (-1 / width)
            slopes.append(torch.stack([b * inside for b in by], 2))
        residual = self.share[:, None] - torch.stack(shares, 1)
        return residual, self.weight[:, None], torch.stack(slopes, 1)

    def error(self, kind: Tensor, parameters: Tensor) -> Tensor:
        """Returns the weighted error of each outline at its best degree of blur, [N * copies]."""
        residual, weight, _ = self.compare(kind, parameters, 1.0)
        shares = self.share[:, None] - residual
        errors = []
        for sigma in _BLURS:
            size = (self.share[:, None] - _blur(shares, sigma)).abs()
            bounded = torch.where(size < _HUBER, size.square(), _HUBER * (2 * size - _HUBER))
            errors.append((bounded * weight).sum((2, 3)).flatten())
        return torch.stack(errors).amin(0)


def _blur(shares: Tensor, sigma: float) -> Tensor:
    """Blurs windows [..., P] with a Gaussian of standard deviation `sigma` pixels."""
    if sigma == 0:
        return shares
    at = torch.arange(-WINDOW, WINDOW + 1)
    weights = torch.exp(-at.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    steps = torch.arange(WINDOW)
    matrix = weights[(steps[:, None] - steps) + WINDOW]  # [WINDOW, WINDOW]
    blurred: Tensor = matrix @ shares.view(*shares.shape[:-1], WINDOW, WINDOW) @ matrix
    return blurred.flatten(-2)


def _descend(
    window: _Window, kind: Tensor, parameters: Tensor, steps: tuple[tuple[float, int], ...], movable: int
) -> Tensor:
    """Refines the first `movable` parameters of [N, 5] by Gauss-Newton steps, with ever sharper edges."""
    # Column i of the parameters moves the centre or the radius by these factors in each frame.
    time = window.time[0]
    one, zero = torch.ones_like(time), torch.zeros_like(time)
    chain = torch.stack(
        [
            torch.stack([one, zero, time, zero, zero]),
            torch.stack([zero, one, zero, time, zero]),
            torch.stack([zero, zero, zero, zero, one]),
        ]
    ).permute(2, 0, 1)  # [T, 3, 5]
    for width, iterations in steps:
        for _ in range(iterations):
            residual, weight, slopes = window.compare(kind, parameters, width)
            weighted = slopes * (weight * (_HUBER / residual.abs().clamp_min(_HUBER)))[..., None, :]
            normal = weighted @ slopes.mT  # [N, S, T, 3, 3]
            right = (weighted @ residual[..., None])[..., 0]  # [N, S, T, 3]
            normal = (chain.mT @ normal @ chain).sum(2).flatten(0, 1)[:, :movable, :movable]
            right = torch.einsum("tij,nsti->nsj", chain, right).flatten(0, 1)[:, :movable]
            diagonal = normal.diagonal(dim1=1, dim2=2)
            normal = normal + torch.diag_embed(0.01 * diagonal + 1.0)
            change = torch.linalg.solve(normal, right[..., None])[..., 0]
            parameters = parameters.clone()
            largest = _LARGEST_CHANGE[:movable]
            parameters[:, :movable] += change.clamp(-largest, largest)
            if movable == 5:
                parameters[:, 4].clamp_(*_RADII)
    return parameters
