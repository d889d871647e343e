"""Contents of the shipped model's videos: shapes that move over a plain or patterned background.

A prompt names colours, shapes, motions, sizes, the background's texture and, if it wants, places. What it
leaves open is drawn from the seed (`layout.py`): places, exact directions and speeds, the position and angle
of textures, and a small speck. So the seed decides much of a video, as in models of real videos.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

FRAMES, SIDE = 16, 64  # pixels; videos are square
MAX_OBJECTS: Final = 2

COLOURS: Final = {  # name -> RGB in 0..255; every two are at least 87 apart
    "red": (220, 35, 35),
    "orange": (250, 135, 25),
    "yellow": (250, 225, 50),
    "green": (40, 180, 70),
    "cyan": (60, 220, 230),
    "blue": (45, 110, 250),
    "navy": (12, 20, 95),
    "purple": (160, 60, 215),
    "pink": (250, 150, 195),
    "brown": (115, 65, 25),
    "white": (247, 247, 247),
    "gray": (128, 128, 128),
    "black": (8, 8, 8),
}
SHADES: Final = {  # second tone of a texture in each colour; at least 62 from every other colour
    "red": (232, 112, 112),
    "orange": (252, 183, 117),
    "yellow": (252, 240, 150),
    "green": (26, 117, 45),
    "cyan": (138, 233, 240),
    "blue": (34, 82, 188),
    "navy": (73, 79, 135),
    "purple": (104, 39, 140),
    "pink": (188, 112, 146),
    "brown": (63, 36, 14),
    "white": (185, 185, 185),
    "gray": (166, 166, 166),
    "black": (70, 70, 70),
}
TEXTURES: Final = ("plain", "striped", "checkered", "dotted")
SHAPES: Final = ("circle", "square", "triangle")
MOTIONS: Final = {  # x to the right, y down
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "still": (0.0, 0.0),
}
SIZES: Final = {"small": 5.5, "large": 9.0}  # radius of the circle of equal area, in pixels
PLACES: Final = {  # of the middle of an object's path: -1 is the left or upper half, 1 the other
    "upper left": (-1, -1),
    "upper right": (1, -1),
    "lower left": (-1, 1),
    "lower right": (1, 1),
}

Split = Literal["train", "calibration", "test"]
_SHARES: Final[tuple[tuple[Split, float], ...]] = (("calibration", 0.1), ("test", 0.2))
_PLACE_SHARE: Final = 0.4  # share of objects whose place is named


@dataclass(frozen=True)
class Thing:
    """An object. Every field is a key of the tables above; without a place, the seed decides it."""

    shape: str
    colour: str
    motion: str
    size: str
    place: str | None = None


@dataclass(frozen=True)
class Scene:
    """Contents of a video: the colour and texture of the background, and one or two objects."""

    background: str
    texture: str
    things: tuple[Thing, ...]


def combination(scene: Scene, thing: Thing) -> str:
    """Returns the combination of attributes that belongs to one split; places are in all of them."""
    return " ".join((thing.size, thing.colour, thing.shape, thing.motion, scene.texture, scene.background))


def find_split(key: str) -> Split:
    """Returns the split of a combination. `test` is for final reports only: no choice may be based on it."""
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    for split, limit in zip(
        (name for name, _ in _SHARES), itertools.accumulate(s for _, s in _SHARES), strict=True
    ):
        if share < limit:
            return split
    return "train"


def draw_scene(split: Split, rng: random.Random, objects: int) -> Scene:
    """Draws a scene with `objects` objects, whose combinations all belong to a split.

    Objects differ from the background in colour, and no two have the same named place.

    Raises ValueError for another split, of which there is no scene.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, not {split!r}")
    while True:
        background, texture = rng.choice(list(COLOURS)), rng.choice(TEXTURES)
        places = rng.sample(list(PLACES), objects)
        things = tuple(
            Thing(
                rng.choice(SHAPES),
                rng.choice([c for c in COLOURS if c != background]),
                rng.choice(list(MOTIONS)),
                rng.choice(list(SIZES)),
                place if rng.random() < _PLACE_SHARE else None,
            )
            for place in places
        )
        scene = Scene(background, texture, things)
        if all(find_split(combination(scene, t)) == split for t in things):
            return scene


def draw_scenes(split: Split, count: int, seed: int, pairs: float = 0.5) -> list[Scene]:
    """Draws scenes of a split, a share `pairs` of them with two objects."""
    rng = random.Random(seed)
    numbers = [2] * round(pairs * count)
    numbers += [1] * (count - len(numbers))
    rng.shuffle(numbers)
    return [draw_scene(split, rng, n) for n in numbers]


_OBJECT_TABLES: Final = (SHAPES, tuple(COLOURS), tuple(MOTIONS), tuple(SIZES), tuple(PLACES))
OBJECT_COLUMNS: Final = len(_OBJECT_TABLES)
COLUMNS: Final = 2 + OBJECT_COLUMNS * MAX_OBJECTS


def scene_table(scenes: list[Scene]) -> Tensor:
    """Converts scenes to rows of indices, int64 [n, COLUMNS].

    A row contains the background's colour and texture, then shape, colour, motion, size and place of each
    object. -1 stands for a missing object and for a place that is not named.
    """
    rows = torch.full((len(scenes), COLUMNS), -1)
    for row, scene in zip(rows, scenes, strict=True):
        row[0] = list(COLOURS).index(scene.background)
        row[1] = TEXTURES.index(scene.texture)
        for i, t in enumerate(scene.things):
            values = zip(_OBJECT_TABLES, (t.shape, t.colour, t.motion, t.size, t.place), strict=True)
            indices = [-1 if v is None else table.index(v) for table, v in values]
            row[2 + OBJECT_COLUMNS * i : 2 + OBJECT_COLUMNS * (i + 1)] = torch.tensor(indices)
    return rows


def parse_scene(row: Tensor) -> Scene:
    """Converts a row of `scene_table` back to a scene."""
    background, texture, *rest = row.tolist()
    things = []
    for i in range(0, len(rest), OBJECT_COLUMNS):
        shape, colour, motion, size, place = rest[i : i + OBJECT_COLUMNS]
        if shape >= 0:
            named = None if place < 0 else list(PLACES)[place]
            things.append(
                Thing(SHAPES[shape], list(COLOURS)[colour], list(MOTIONS)[motion], list(SIZES)[size], named)
            )
    return Scene(list(COLOURS)[background], TEXTURES[texture], tuple(things))


def objects_of(table: Tensor) -> Tensor:
    """Returns the objects' part of rows of `scene_table`, int64 [n, MAX_OBJECTS, OBJECT_COLUMNS]."""
    return table[:, 2:].view(len(table), MAX_OBJECTS, OBJECT_COLUMNS)
