"""Fits a background of the world to a picture: colour, texture, and position of the texture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from models.shapes.layout import ANGLES, PERIODS
from models.shapes.render import unit_rgb
from models.shapes.world import COLOURS, SHADES, SIDE, TEXTURES

# Distances are in [-1, 1] RGB; two colours of the world are at least 0.49 apart, shades included.
OFF_TONE: Final = 0.3  # a pixel further from the line between the two tones does not show the background
MIN_CONTRAST: Final = 0.3  # lowest contrast of a texture, of the world's; less is a plain background
_RIVAL_COLOURS: Final = 1.5  # a second colour is fitted too if its error is at most this multiple of the best
_STEPS: Final = ((4.0, 4), (2.0, 3), (1.0, 3))  # widths of edges in pixels, with the numbers of iterations
_LARGEST_CHANGE: Final = torch.tensor([0.5, 0.05, 0.1, 0.1])  # per iteration: period, angle, phases
_CONVERGED: Final = torch.tensor([0.02, 0.001, 0.002, 0.002])  # iterations end when nothing changes by more
_SPECTRUM_PERIODS: Final = (-0.055, 0.0, 0.055)  # relative deviations from PERIODS
_PLAIN_ERROR: Final = 0.002  # a plain background with a lower error is not compared with textures
_HUBER: Final = 0.35  # residual of a share from which on it counts linearly


@dataclass(frozen=True)
class Background:
    """Background fitted to a picture.

    Attributes:
        colour, texture: Indices into COLOURS and TEXTURES.
        period, angle, phase: Position of the texture, as in `Layout`: [], [], [2].
        share: Share of the second tone in each pixel, [H, W].
        picture: Background in the world's tones, [3, H, W].
        error: Mean capped squared distance between picture and background.
    """

    colour: int
    texture: int
    period: Tensor
    angle: Tensor
    phase: Tensor
    share: Tensor
    picture: Tensor
    error: float


def tones(colour: int) -> tuple[Tensor, Tensor]:
    """Returns the two tones [3] of a background colour."""
    return unit_rgb(COLOURS)[colour], unit_rgb(SHADES)[colour]


def distance_to_tones(pixels: Tensor, colour: int, textured: bool = True) -> Tensor:
    """Computes the squared distance of pixels [3, ...] to the line between the two tones, or to the first."""
    tone, shade = tones(colour)
    return distance_to_line(pixels, tone, shade if textured else tone)


def distance_to_line(pixels: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Computes the squared distance of pixels [3, ...] to the line between two colours [3]."""
    shape = (3, *[1] * (pixels.ndim - 1))
    offset = pixels - start.view(shape)
    axis = end - start
    along = (torch.tensordot(axis, offset, 1) / axis.square().sum().clamp_min(1e-6)).clamp(0, 1)
    distance: Tensor = (offset - axis.view(shape) * along).square().sum(0)
    return distance


def fit_background(picture: Tensor, weight: Tensor | None = None) -> Background:
    """Fits a background to a picture [3, H, W] in which objects may cover a part.

    Args:
        picture: Picture in [-1, 1].
        weight: Weight of each pixel, [H, W]; 1 by default.
    """
    weight = torch.ones(picture.shape[1:]) if weight is None else weight
    total = weight.sum().clamp_min(1)
    distances = torch.stack([distance_to_tones(picture, c) for c in range(len(COLOURS))])  # [n, H, W]
    errors = (distances.clamp_max(OFF_TONE**2) * weight).sum((1, 2)) / total
    order = errors.argsort()
    colours = [int(order[0])]
    if float(errors[order[1]]) <= _RIVAL_COLOURS * float(errors[order[0]]):
        colours.append(int(order[1]))
    return min((_fit_colour(picture, weight, c, distances[c]) for c in colours), key=lambda b: b.error)


def _fit_colour(picture: Tensor, weight: Tensor, colour: int, distance: Tensor) -> Background:
    """Fits a background of one colour. `distance` [H, W] is the result of `distance_to_tones`."""
    tone, shade = tones(colour)
    axis = shade - tone
    observed = torch.tensordot(axis, picture - tone.view(3, 1, 1), 1) / axis.square().sum()
    observed = observed.clamp(-0.5, 1.5)
    weight = weight * (distance < OFF_TONE**2)
    plain = _plain_error(observed, weight)
    kind, parameters, error = 0, torch.tensor([PERIODS["plain"], 0.0, 0.5, 0.5]), plain
    if plain > _PLAIN_ERROR:
        for texture, start in enumerate(_candidates(observed, weight), 1):
            fitted, errors, contrast = _refine(texture, start, observed, weight, _STEPS)
            errors = torch.where(contrast >= MIN_CONTRAST, errors, math.inf)
            if float(errors.min()) < error:
                kind, parameters, error = texture, fitted[errors.argmin()], float(errors.min())
    parameters = _canonical(kind, parameters)
    share = torch.zeros_like(observed)
    if kind:
        share = _soft_share(kind, parameters[None], 1.0)[0].view(SIDE, SIDE)
    shown = tone.view(3, 1, 1) + axis.view(3, 1, 1) * share
    off = (picture - shown).square().sum(0).clamp_max(OFF_TONE**2)
    return Background(
        colour, kind, parameters[0], parameters[1], parameters[2:], share, shown, float(off.mean())
    )


def _canonical(kind: int, parameters: Tensor) -> Tensor:
    """Moves an equivalent texture's parameters (period, angle, two phases) to the range of `Layout`."""
    period, angle, u, v = parameters.tolist()
    if TEXTURES[kind] == "striped" and not -math.pi / 2 <= angle <= math.pi / 2:
        angle, u = (angle + math.pi / 2) % math.pi - math.pi / 2, -u  # half a turn reverses the direction
    return torch.tensor([period, angle, u % 1, v % 1])


@cache
def _spectrum() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns a table of candidate textures for their fundamental waves.

    Returns:
        Indices into TEXTURES [N], periods and angles [N, 2], numbers of waves [N] (2 for lattices), and the
        conjugate waves' real and imaginary parts, [2, N, 2, H * W].
    """
    at = torch.arange(SIDE) + 0.5 - SIDE / 2
    x, y = at.repeat(SIDE), at.repeat_interleave(SIDE)
    kinds, parameters, counts, waves = [], [], [], []
    for kind, name in enumerate(TEXTURES):
        if name == "plain":
            continue
        angles = torch.arange(-90, 90, 5) if name == "striped" else torch.arange(-15, 16, 5)
        assert math.radians(90 if name == "striped" else 15) >= ANGLES[name] - 1e-6
        for deviation in _SPECTRUM_PERIODS:
            for angle in torch.deg2rad(angles.float()).tolist():
                period = PERIODS[name] * (1 + deviation)
                u = (x * math.cos(angle) + y * math.sin(angle)) / period
                v = (y * math.cos(angle) - x * math.sin(angle)) / period
                first, second = (u + v, u - v) if name == "checkered" else (u, v)
                kinds.append(kind)
                parameters.append((period, angle))
                counts.append(1 if name == "striped" else 2)
                waves.append(torch.stack([first, second]))
    phases = -2 * math.pi * torch.stack(waves)
    return (
        torch.tensor(kinds),
        torch.tensor(parameters),
        torch.tensor(counts),
        torch.stack([phases.cos(), phases.sin()]),
    )


def _candidates(observed: Tensor, weight: Tensor) -> Tensor:
    """Returns two likely positions of each texture but `plain`, by the strength of the fundamental waves.

    The result has the parameters of `_soft_share`, [textures, 2, 4].
    """
    kinds, parameters, counts, waves = _spectrum()
    centred = (observed - (observed * weight).sum() / weight.sum().clamp_min(1)) * weight
    amplitude = torch.complex(*(waves @ centred.flatten()))  # [N, 2]
    power = torch.where(counts == 1, amplitude[:, 0].abs(), torch.minimum(*amplitude.abs().unbind(1)))
    chosen = []
    for kind in range(1, len(TEXTURES)):
        best = torch.where(kinds == kind, power, -1.0)
        chosen.append(first := int(best.argmax()))
        # A second start that differs in angle; periods are close enough for one start.
        far = (parameters[:, 1] - parameters[first, 1]).abs() > math.radians(7)
        chosen.append(int(torch.where(far, best, -1.0).argmax()))
    index = torch.tensor(chosen)
    phase = torch.view_as_real(-amplitude[index])
    phase = torch.atan2(phase[..., 1], phase[..., 0]) / (2 * math.pi)  # [N, 2], in periods
    alpha, beta = phase.unbind(1)
    checks = (kinds[index] == TEXTURES.index("checkered"))[:, None]
    phase = torch.where(checks, torch.stack([(alpha + beta) / 2, (alpha - beta) / 2], 1), phase)
    return torch.cat([parameters[index], phase], 1).view(-1, 2, 4)


def _regress(share: Tensor, observed: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Fits offset and contrast [N] of shares [N, P] to the observed share [P]. The contrast is in 0..1.3."""
    total = weight.sum().clamp_min(1)
    mean = share @ weight / total
    level = (observed * weight).sum() / total
    centred = share - mean[:, None]
    contrast = centred @ ((observed - level) * weight) / (centred.square() @ weight).clamp_min(1)
    contrast = contrast.clamp(0, 1.3)
    return level - contrast * mean, contrast


def _huber(residual: Tensor) -> Tensor:
    # torch's Huber loss is half of the square.
    return 2 * F.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=_HUBER)


def _plain_error(observed: Tensor, weight: Tensor) -> float:
    level = (observed * weight).sum() / weight.sum().clamp_min(1)
    return float((_huber(observed - level) * weight).sum() / weight.sum().clamp_min(1))


def _soft_share(kind: int, parameters: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Computes textures of one kind with edges of a given width.

    Args:
        kind: Index into TEXTURES.
        parameters: Periods, angles and two phases, [N, 4].
        width: Width of edges in pixels; 1 as in rendered videos.

    Returns:
        Shares of the second tone [N, P], and their derivatives with respect to the parameters [N, 4, P].
    """
    at = torch.arange(SIDE) + 0.5 - SIDE / 2
    x, y = at.repeat(SIDE), at.repeat_interleave(SIDE)
    period, angle, phase_u, phase_v = (column[:, None] for column in parameters.unbind(1))
    cos, sin = angle.cos(), angle.sin()
    u, v = (x * cos + y * sin) / period, (y * cos - x * sin) / period  # [N, P], without phases
    a, b = u + phase_u, v + phase_v
    a, b = a - a.floor() - 0.5, b - b.floor() - 0.5
    slope = period / width
    if TEXTURES[kind] == "dotted":
        radius = (a * a + b * b + 1e-9).sqrt()
        edge = (radius - 0.29) * slope
        share = (0.5 - edge).clamp(0, 1)
        slope = -slope * (edge.abs() < 0.5) / radius
        by_u, by_v = slope * a, slope * b
    else:
        edge_u, edge_v = (a.abs() - 0.25) * slope, (b.abs() - 0.25) * slope
        stripes, across = (0.5 - edge_u).clamp(0, 1), (0.5 - edge_v).clamp(0, 1)
        by_u = -a.sign() * slope * (edge_u.abs() < 0.5)
        by_v = -b.sign() * slope * (edge_v.abs() < 0.5)
        if TEXTURES[kind] == "striped":
            share, by_v = stripes, torch.zeros_like(by_v)
        else:
            share = stripes + across - 2 * stripes * across
            by_u, by_v = by_u * (1 - 2 * across), by_v * (1 - 2 * stripes)
    return share, torch.stack([-(by_u * u + by_v * v) / period, by_u * v - by_v * u, by_u, by_v], 1)


def _refine(
    kind: int, parameters: Tensor, observed: Tensor, weight: Tensor, steps: tuple[tuple[float, int], ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Refines candidates [N, 4] of one texture by Gauss-Newton steps, with ever sharper edges.

    Returns the parameters, errors and contrasts at the sharpest edges.
    """
    observed, weight = observed.flatten(), weight.flatten()
    total = weight.sum().clamp_min(1)
    best = parameters
    error = contrast = torch.zeros(len(parameters))
    for width, iterations in steps:
        error, best = torch.full((len(parameters),), math.inf), parameters
        for i in range(iterations + 1):
            share, slopes = _soft_share(kind, parameters, width)
            offset, gain = _regress(share, observed, weight)
            residual = observed - offset[:, None] - gain[:, None] * share
            tried = _huber(residual) @ weight / total
            better = tried < error
            best = torch.where(better[:, None], parameters, best)
            error, contrast = torch.where(better, tried, error), torch.where(better, gain, contrast)
            if i == iterations:
                break
            slopes = slopes * gain.clamp_min(0.1).view(-1, 1, 1)
            weighted = slopes * (weight * (_HUBER / residual.abs().clamp_min(_HUBER)))[:, None]
            normal = weighted @ slopes.mT
            scale = normal.diagonal(dim1=1, dim2=2)
            normal = normal + torch.diag_embed(0.02 * scale + 1e-6 * scale.amax(1, keepdim=True) + 1e-6)
            change = torch.linalg.solve(normal, weighted @ residual[..., None])[..., 0]
            if bool((change.abs() < _CONVERGED).all()):
                break
            parameters = parameters + change.clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE)
        parameters = best
    return best, error, contrast
