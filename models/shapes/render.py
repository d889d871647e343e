"""Renders scenes with given layouts to videos. Differentiable with respect to the layout."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.shapes.layout import SPECK_RADIUS, Layout
from models.shapes.world import COLOURS, FRAMES, SHADES, SHAPES, SIDE, TEXTURES, objects_of


def unit_rgb(table: dict[str, tuple[int, int, int]]) -> Tensor:
    """Returns a table of colours in [-1, 1], [n, 3]."""
    return torch.tensor(list(table.values()), dtype=torch.float32) / 127.5 - 1


def _pixel_centres(side: int) -> Tensor:
    return (torch.arange(side) + 0.5) * (SIDE / side)


def _edge(distance: Tensor, side: int) -> Tensor:
    """Returns the share of pixels inside an outline, anti-aliased over one pixel, from signed distances."""
    return (0.5 - distance * (side / SIDE)).clamp(0, 1)


def coverage(shape: Tensor, radius: Tensor, centre: Tensor, side: int = SIDE) -> Tensor:
    """Computes the share of each pixel that an object covers.

    Args:
        shape: Indices into SHAPES, int64 [B].
        radius: Radius of the circle of equal area, [B].
        centre: Centroid (x, y), [B, T, 2].
        side: Pixels per row and column of the result.

    Returns:
        Shares in 0..1, [B, T, side, side].
    """
    at = _pixel_centres(side)
    x = at.view(1, 1, 1, -1) - centre[..., 0, None, None]  # [B, T, 1, W]
    y = at.view(1, 1, -1, 1) - centre[..., 1, None, None]  # [B, T, H, 1]
    parts = []
    for s in range(len(SHAPES)):
        chosen = (shape == s).nonzero()[:, 0]
        dx, dy, r = x[chosen], y[chosen], radius[chosen].view(-1, 1, 1, 1)
        if s == 0:
            distance = torch.sqrt(dx * dx + dy * dy + 1e-9) - r
        elif s == 1:
            distance = torch.maximum(dx.abs(), dy.abs()) - r * (math.sqrt(math.pi) / 2)
        else:  # apex up
            slope = dx.abs() * (math.sqrt(3) / 2) - dy / 2
            distance = torch.maximum(slope, dy.expand_as(slope)) - r * math.sqrt(math.pi / math.sqrt(27))
        parts.append((chosen, _edge(distance, side)))
    order = torch.cat([chosen for chosen, _ in parts]).argsort()
    return torch.cat([part for _, part in parts])[order]


def texture_share(texture: Tensor, period: Tensor, angle: Tensor, phase: Tensor, side: int = SIDE) -> Tensor:
    """Computes each pixel's share of the second tone, [B, side, side], of textures: indices into TEXTURES [B]
    and the fields of `Layout`."""
    at = _pixel_centres(side) - SIDE / 2
    x, y = at.view(1, 1, -1), at.view(1, -1, 1)
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    p = period.view(-1, 1, 1)
    u = (x * cos + y * sin) / p + phase[:, :1, None]  # [B, H, W], in periods
    v = (y * cos - x * sin) / p + phase[:, 1:, None]
    wave_u = (u - u.floor() - 0.5).abs() - 0.25  # negative in the middle half of a period
    wave_v = (v - v.floor() - 0.5).abs() - 0.25
    stripes, across = _edge(wave_u * p, side), _edge(wave_v * p, side)
    checks = stripes + across - 2 * stripes * across
    du, dv = u - u.floor() - 0.5, v - v.floor() - 0.5
    dots = _edge(torch.sqrt(du * du + dv * dv + 1e-9) * p - 0.29 * p, side)
    choices = torch.stack([torch.zeros_like(stripes), stripes, checks, dots])  # in the order of TEXTURES
    assert len(choices) == len(TEXTURES)
    return choices[texture, torch.arange(len(texture))]


def centres(layout: Layout) -> Tensor:
    """Returns the centroids [B, 2, T, 2] (x, y) of objects in every frame."""
    time = torch.linspace(-0.5, 0.5, FRAMES).view(1, 1, -1, 1)
    return layout.middle[:, :, None] + layout.travel[:, :, None] * time


def render_background(table: Tensor, layout: Layout, side: int = SIDE) -> Tensor:
    """Renders the background of rows of `scene_table` without objects and speck, [B, 3, side, side]."""
    tone, shade = unit_rgb(COLOURS)[table[:, 0]], unit_rgb(SHADES)[table[:, 0]]
    share = texture_share(table[:, 1], layout.period, layout.angle, layout.phase, side)
    return torch.lerp(tone[..., None, None], shade[..., None, None], share[:, None])


def cover_objects(table: Tensor, layout: Layout, side: int = SIDE) -> Tensor:
    """Computes the share of each pixel that each object covers, as if it were alone, [B, 2, T, side, side].

    It is 0 for an object that does not exist.
    """
    things, where = objects_of(table), centres(layout)
    shape, exists = things[..., 0].clamp_min(0), things[..., 0] >= 0
    flat = coverage(shape.flatten(), layout.radius.flatten(), where.flatten(0, 1), side)
    return flat.view(*shape.shape, *flat.shape[1:]) * exists[..., None, None, None]


def render(table: Tensor, layout: Layout, side: int = SIDE) -> Tensor:
    """Renders rows of `scene_table` to videos, float32 [B, 3, T, side, side] in [-1, 1]."""
    video = render_background(table, layout, side)[:, :, None].expand(-1, -1, FRAMES, -1, -1)

    time = torch.linspace(-0.5, 0.5, FRAMES).view(1, -1, 1)
    path = layout.speck_middle[:, None] + layout.speck_travel[:, None] * time  # [B, T, 2]
    circles = torch.zeros(len(table), dtype=torch.int64)
    alpha = coverage(circles, torch.full((len(table),), SPECK_RADIUS), path, side)
    video = torch.lerp(video, speck_tone(table), (alpha * layout.speck.view(-1, 1, 1, 1))[:, None])

    alphas, rows = cover_objects(table, layout, side), torch.arange(len(table))
    colours = unit_rgb(COLOURS)[objects_of(table)[..., 1].clamp_min(0)]  # [B, 2, 3]
    for i in (1 - layout.front, layout.front):
        video = torch.lerp(video, colours[rows, i].view(-1, 3, 1, 1, 1), alphas[rows, i][:, None])
    return video


def speck_tone(table: Tensor) -> Tensor:
    """Returns the speck's colour, [B, 3, 1, 1, 1]: white on a dark background, black on a light one."""
    light = unit_rgb(COLOURS)[table[:, 0]].mean(1) > 0
    return torch.where(light, -0.9, 0.9).view(-1, 1, 1, 1, 1).expand(-1, 3, -1, -1, -1)
