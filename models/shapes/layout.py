"""Draws what a prompt leaves open: places, directions, speeds, the position of textures, a speck."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

import torch
from torch import Tensor

from models.shapes.world import MAX_OBJECTS, MOTIONS, PLACES, SIDE, SIZES, TEXTURES, objects_of

HEADING_SPREAD: Final = math.radians(25)  # uniform, on either side of the named direction
TRAVEL: Final = (12.0, 20.0)  # length of a path from the first to the last frame, in pixels
RADIUS_JITTER: Final = 0.08  # relative, uniform
PLACE_MARGIN: Final = 4.0  # pixels between a named half and the middle of the frame
PERIODS: Final = {"plain": 16.0, "striped": 16.0, "checkered": 18.0, "dotted": 14.0}  # pixels
PERIOD_JITTER: Final = 0.08  # relative, uniform
# Largest angle of a texture on either side of 0, in radians. Stripes have any direction.
ANGLES: Final = {"plain": 0.0, "striped": math.pi / 2, "checkered": math.pi / 12, "dotted": math.pi / 12}
SPECK_RADIUS: Final = 2.0  # pixels
SPECK_SHARE: Final = 0.5  # share of videos with a speck
SPECK_TRAVEL: Final = 24.0  # largest length of its path, in pixels
# Distance of a shape's outline from its centroid to the left or right, up, and down, over the radius of the
# circle of equal area.
EXTENTS: Final = ((1.0, 1.0, 1.0), (0.886, 0.886, 0.886), (1.347, 1.555, 0.778))
_CANDIDATES: Final = 16  # placements drawn for two objects, of which one without much overlap is chosen
# Smallest distance of two objects over the sum of their radii, drawn per video; those of one colour must
# stay apart, because nothing else separates them.
_OVERLAP: Final = (0.6, 1.2)
_APART: Final = 1.5


@dataclass(frozen=True)
class Layout:
    """What the seed decides about B videos. Lengths are in pixels of a frame of SIDE pixels.

    Attributes:
        middle: Middle of each object's path (x, y), [B, 2, 2].
        travel: Vector from the first to the last frame, [B, 2, 2].
        radius: Radius of the circle of equal area, [B, 2].
        front: Index of the object that is in front, [B].
        period, angle: Of the texture, [B]; the angle in radians.
        phase: Offset of the texture along its two directions, in periods, [B, 2].
        speck: Opacity of the speck, 0 or 1, [B].
        speck_middle, speck_travel: Its path, [B, 2].
    """

    middle: Tensor
    travel: Tensor
    radius: Tensor
    front: Tensor
    period: Tensor
    angle: Tensor
    phase: Tensor
    speck: Tensor
    speck_middle: Tensor
    speck_travel: Tensor

    def select(self, index: Tensor | slice) -> Layout:
        """Returns the layouts of some videos."""
        return Layout(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Layout:
        """Returns the layouts on a device."""
        return Layout(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def draw_layout(table: Tensor, generator: torch.Generator, like: Tensor | None = None) -> Layout:
    """Draws the layout of rows of `scene_table`, int64 [B, COLUMNS].

    The number of random values depends on B only. So two tables drawn with one generator state share
    everything that their attributes allow, if `like` is the same.

    Args:
        like: Rows for which the placement of two objects is chosen among random ones; `table` by default.
    """
    n = len(table)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * uniform(*shape)

    things = objects_of(table)
    sizes = torch.tensor(list(SIZES.values()))[things[..., 3].clamp_min(0)]
    radius = sizes * between(1 - RADIUS_JITTER, 1 + RADIUS_JITTER, MAX_OBJECTS)
    course, places, overlap = uniform(MAX_OBJECTS, 2), uniform(_CANDIDATES, MAX_OBJECTS, 2), uniform()
    candidates, travel = _draw_paths(table, radius, course, places)
    reference = (candidates, travel) if like is None else _draw_paths(like, radius, course, places)
    chosen = _choose_placement(table if like is None else like, radius, *reference, overlap)
    texture = table[:, 1]
    period = torch.tensor([PERIODS[t] for t in TEXTURES])[texture]
    angle = torch.tensor([ANGLES[t] for t in TEXTURES])[texture]
    speck_angle = between(0, 2 * math.pi)
    direction = torch.stack([speck_angle.cos(), speck_angle.sin()], -1)
    return Layout(
        middle=candidates[torch.arange(n), chosen],
        travel=travel,
        radius=radius,
        front=(uniform() < 0.5).long(),
        period=period * between(1 - PERIOD_JITTER, 1 + PERIOD_JITTER),
        angle=angle * between(-1, 1),
        phase=uniform(2),
        speck=(uniform() < SPECK_SHARE).float(),
        speck_middle=between(16, SIDE - 16, 2),
        speck_travel=direction * between(0, SPECK_TRAVEL, 1),
    )


def _draw_paths(table: Tensor, radius: Tensor, course: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Computes candidates for the middles [B, K, 2, 2], and the travels [B, 2, 2], from random values in
    0..1: `course` [B, 2, 2] and `places` [B, K, 2, 2]."""
    things = objects_of(table)
    direction = torch.tensor(list(MOTIONS.values()))[things[..., 2].clamp_min(0)]  # [B, 2, 2]
    turn = (2 * course[..., 0] - 1) * HEADING_SPREAD
    x, y = direction.unbind(-1)
    turned = torch.stack([x * turn.cos() - y * turn.sin(), x * turn.sin() + y * turn.cos()], -1)
    travel = turned * (TRAVEL[0] + (TRAVEL[1] - TRAVEL[0]) * course[..., 1:])

    low, high = middle_bounds(table, radius, travel)
    return low[:, None] + (high - low).clamp_min(0)[:, None] * places, travel


def middle_bounds(table: Tensor, radius: Tensor, travel: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the lowest and highest middles [B, 2, 2] at which objects stay in the frame and in their
    place."""
    things = objects_of(table)
    extents = torch.tensor(EXTENTS)[things[..., 0].clamp_min(0)] * radius[..., None]  # [B, 2, 3]
    reach = travel.abs() / 2
    low = torch.stack([extents[..., 0], extents[..., 1]], -1) + reach  # from the left and the top
    high = SIDE - torch.stack([extents[..., 0], extents[..., 2]], -1) - reach
    half = torch.tensor(list(PLACES.values()))[things[..., 4].clamp_min(0)] * (things[..., 4:] >= 0)
    low = torch.where(half > 0, low.clamp_min(SIDE / 2 + PLACE_MARGIN), low)
    return low, torch.where(half < 0, high.clamp_max(SIDE / 2 - PLACE_MARGIN), high)


def _choose_placement(
    table: Tensor, radius: Tensor, candidates: Tensor, travel: Tensor, overlap: Tensor
) -> Tensor:
    """Returns the first candidate [B] whose objects are far enough apart, or else the one where they are
    furthest apart. `overlap` [B] in 0..1 varies the distance that is enough."""
    things = objects_of(table)
    time = torch.linspace(-0.5, 0.5, 5).view(1, 1, -1, 1)
    apart = (candidates[:, :, 0] - candidates[:, :, 1])[:, :, None] + (travel[:, 0] - travel[:, 1])[
        :, None, None
    ] * time
    gap = apart.norm(dim=-1).amin(-1) / radius.sum(1, keepdim=True)  # [B, K]
    enough = _OVERLAP[0] + (_OVERLAP[1] - _OVERLAP[0]) * overlap
    enough = torch.where(things[:, 0, 1] == things[:, 1, 1], _APART, enough)[:, None]
    order = torch.arange(gap.shape[1], 0, -1)
    chosen = torch.where(gap >= enough, 1e3 + order, gap).argmax(1)
    return torch.where(things[:, 1, 0] >= 0, chosen, 0)
