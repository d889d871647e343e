"""Procedural world: short videos of one or two moving shapes on a plain background.

A scene is a background and one or two objects, each with shape, colour, motion and size. A single object
passes through the middle of the frame; of two, the one named first is at the upper left, the other at the
lower right. Paths and sizes vary only slightly from seed to seed, so the prompt determines almost everything.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

FRAMES, HEIGHT, WIDTH = 16, 48, 48
MAX_OBJECTS = 2
JITTER = 1.0  # pixels, uniform, on the path's centre
RADIUS_JITTER = 0.06  # relative, uniform

SHAPES = ("circle", "square", "triangle")
COLOURS = {  # name -> RGB in 0..255; every pair, backgrounds included, is at least 70 apart
    "red": (220, 35, 35),
    "green": (40, 180, 70),
    "blue": (45, 110, 250),
    "yellow": (250, 225, 50),
    "orange": (250, 135, 25),
    "purple": (160, 60, 215),
    "cyan": (60, 220, 230),
}
BACKGROUNDS = {
    "black": (8, 8, 8),
    "white": (247, 247, 247),
    "gray": (128, 128, 128),
    "navy": (12, 20, 95),
    "brown": (95, 60, 30),
}
MOTIONS = {  # x to the right, y down
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "still": (0.0, 0.0),
}
SIZES = {"small": 4.0, "large": 6.5}  # radius of the circle of equal area, in pixels
# By number of objects: centres of the paths (x, y), and length of the paths from first to last frame, in
# pixels.
CENTRES: Final = {1: ((24.0, 24.0),), 2: ((14.5, 14.5), (33.5, 33.5))}
TRAVEL: Final = {1: 18.0, 2: 12.0}

Split = Literal["train", "calibration", "test"]
SPLIT_FILE: Final = Path(__file__).with_name("split.json")


@dataclass(frozen=True)
class Thing:
    """An object. Every field is a key of the tables above."""

    shape: str
    colour: str
    motion: str
    size: str


@dataclass(frozen=True)
class Scene:
    """Contents of a video: a background and one or two objects, in the order in which a prompt names them."""

    background: str
    things: tuple[Thing, ...]


def things() -> list[Thing]:
    """Returns all possible objects (210), in a fixed order."""
    return [Thing(*c) for c in itertools.product(SHAPES, COLOURS, MOTIONS, SIZES)]


def combination(background: str, thing: Thing) -> str:
    """Returns the key of a combination of five attributes in the split file."""
    return " ".join((thing.size, thing.colour, thing.shape, thing.motion, background))


@cache
def _split() -> dict[str, Split]:
    named: dict[Split, list[str]] = json.loads(SPLIT_FILE.read_text("utf-8"))["combinations"]
    return {key: split for split, keys in named.items() for key in keys}


def single_scenes(split: Split) -> list[Scene]:
    """Returns the scenes of one object that belong to a split, in a fixed order."""
    pairs = itertools.product(BACKGROUNDS, things())
    return [Scene(b, (t,)) for b, t in pairs if _split()[combination(b, t)] == split]


def pair_scene(split: Split, draw: torch.Generator) -> Scene:
    """Draws a random scene of two objects whose combinations with the background both belong to the split."""
    backgrounds = list(BACKGROUNDS)
    background = backgrounds[int(torch.randint(len(backgrounds), (1,), generator=draw))]
    pool = _things_on(split, background)
    first, second = torch.randint(len(pool), (2,), generator=draw).tolist()
    return Scene(background, (pool[first], pool[second]))


@cache
def _things_on(split: Split, background: str) -> list[Thing]:
    return [t for t in things() if _split()[combination(background, t)] == split]


def scene_table(scenes: list[Scene]) -> Tensor:
    """Converts scenes to rows of indices, int64 [n, 9].

    A row contains the background, then shape, colour, motion and size of each object; -1 for a missing second
    one.
    """
    tables = (SHAPES, tuple(COLOURS), tuple(MOTIONS), tuple(SIZES))
    rows = torch.full((len(scenes), 1 + 4 * MAX_OBJECTS), -1)
    for row, scene in zip(rows, scenes, strict=True):
        row[0] = list(BACKGROUNDS).index(scene.background)
        for i, t in enumerate(scene.things):
            values = zip(tables, (t.shape, t.colour, t.motion, t.size), strict=True)
            row[1 + 4 * i : 5 + 4 * i] = torch.tensor([table.index(v) for table, v in values])
    return rows


def parse_scene(row: Tensor) -> Scene:
    """Converts a row of `scene_table` back to a scene."""
    background, *rest = row.tolist()
    parts = [rest[i : i + 4] for i in range(0, len(rest), 4) if rest[i] >= 0]
    named = [Thing(SHAPES[s], list(COLOURS)[c], list(MOTIONS)[m], list(SIZES)[z]) for s, c, m, z in parts]
    return Scene(list(BACKGROUNDS)[background], tuple(named))


def coverage(shape: Tensor, radius: Tensor, cx: Tensor, cy: Tensor) -> Tensor:
    """Computes the share of each pixel that an object covers, anti-aliased over one pixel.

    Args:
        shape: Indices into SHAPES, int64 [B].
        radius: Radius of the circle of equal area, in pixels, [B].
        cx, cy: Centroid in pixels, [B, T].

    Returns:
        Shares in 0..1, [B, T, H, W].
    """
    dy = (torch.arange(HEIGHT) + 0.5).view(1, 1, -1, 1) - cy[..., None, None]  # [B, T, H, 1]
    dx = (torch.arange(WIDTH) + 0.5).view(1, 1, 1, -1) - cx[..., None, None]  # [B, T, 1, W]
    out = torch.empty(*cx.shape, HEIGHT, WIDTH)
    for s in range(len(SHAPES)):
        selected = shape == s
        x, y, r = dx[selected], dy[selected], radius[selected].view(-1, 1, 1, 1)
        if s == 0:
            distance = torch.sqrt(x * x + y * y) - r
        elif s == 1:
            distance = torch.maximum(x.abs(), y.abs()) - r * (math.sqrt(math.pi) / 2)
        else:  # apex up
            slope = x.abs() * (math.sqrt(3) / 2) - y / 2
            distance = torch.maximum(slope, y) - r * math.sqrt(math.pi / math.sqrt(27))
        out[selected] = (0.5 - distance).clamp(0, 1)
    return out


def nominal_paths(table: Tensor) -> Tensor:
    """Returns the centroids [B, 2, T, 2] (x, y), in pixels, of the objects in rows of `scene_table`."""
    things = table[:, 1:].view(len(table), MAX_OBJECTS, 4)
    pair = (things[:, 1, 0] >= 0).long()  # [B]
    centres = torch.tensor([[CENTRES[1][0], CENTRES[1][0]], CENTRES[2]])[pair]
    travel = torch.tensor([TRAVEL[1], TRAVEL[2]])[pair]
    progress = torch.linspace(-0.5, 0.5, FRAMES) * travel[:, None]  # [B, T]
    direction = torch.tensor(list(MOTIONS.values()))[things[..., 2].clamp_min(0)]  # [B, 2, 2]
    return centres[:, :, None] + direction[:, :, None] * progress[:, None, :, None]


def paths(table: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws centroids [B, 2, T, 2] (x, y) and radii [B, 2] of objects, in pixels, near their nominal
    values."""
    uniform = torch.rand(len(table), MAX_OBJECTS, 3, generator=generator) * 2 - 1
    size = table[:, 1:].view(len(table), MAX_OBJECTS, 4)[..., 3]
    radius = torch.tensor(list(SIZES.values()))[size.clamp_min(0)]
    return nominal_paths(table) + JITTER * uniform[:, :, None, :2], radius * (
        1 + RADIUS_JITTER * uniform[..., 2]
    )


def render(table: Tensor, generator: torch.Generator) -> Tensor:
    """Renders rows of `scene_table`, int64 [B, 9], to videos, float32 [B, 3, T, H, W] in [-1, 1]."""
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 127.5 - 1
    backgrounds = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32) / 127.5 - 1
    centroid, radius = paths(table, generator)
    video = backgrounds[table[:, 0]].view(-1, 3, 1, 1, 1).repeat(1, 1, FRAMES, HEIGHT, WIDTH)
    for i in range(MAX_OBJECTS):
        shape, colour = table[:, 1 + 4 * i], table[:, 2 + 4 * i]
        exists = shape >= 0
        x, y = centroid[exists, i].unbind(-1)
        alpha = coverage(shape[exists], radius[exists, i], x, y)[:, None]  # [b, 1, T, H, W]
        video[exists] = torch.lerp(video[exists], palette[colour[exists]].view(-1, 3, 1, 1, 1), alpha)
    return video
