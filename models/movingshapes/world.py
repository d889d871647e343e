"""The procedural world: short captioned videos of one shape on a plain background.

A scene is five attributes (shape, colour, background, motion, size). `caption` writes it in one of
several phrasings, `render` draws it. The path of a moving object is centred near the middle of the
frame with a small jitter, so the caption says almost everything: the mean video of a caption is still
recognisable, which is what a sampler of four steps can reach.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

FRAMES, HEIGHT, WIDTH = 8, 32, 32
TRAVEL = 14.0  # pixels from the first frame to the last
JITTER = 1.0  # pixels, uniform, of the path's centre
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
MOTIONS = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "still": (0.0, 0.0),
}
SIZES = {"small": 4.5, "large": 7.5}  # radius of the circle of equal area, in pixels


@dataclass(frozen=True)
class Scene:
    """What a video shows; every field is a key of the tables above."""

    shape: str
    colour: str
    background: str
    motion: str
    size: str


def scenes() -> list[Scene]:
    """Every combination of the attributes, in a fixed order (1,050)."""
    return [Scene(*c) for c in itertools.product(SHAPES, COLOURS, BACKGROUNDS, MOTIONS, SIZES)]


def held_out(scene: Scene) -> bool:
    """Whether a scene is kept out of training: one pair of values for each of five pairs of attributes."""
    return (
        (scene.shape, scene.colour) in {("triangle", "purple"), ("square", "cyan")}
        or (scene.colour, scene.motion) == ("orange", "up")
        or (scene.colour, scene.background) == ("yellow", "navy")
        or (scene.shape, scene.motion, scene.size) == ("circle", "left", "small")
        or (scene.background, scene.motion) == ("brown", "right")
    )


_SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc", "ball", "dot"),
    "square": ("square", "square", "box", "block"),
    "triangle": ("triangle", "triangle", "triangular shape"),
}
_COLOUR_WORDS = {
    "red": ("red", "red", "crimson", "bright red"),
    "green": ("green", "green", "bright green"),
    "blue": ("blue", "blue", "bright blue"),
    "yellow": ("yellow", "yellow", "bright yellow"),
    "orange": ("orange", "orange", "bright orange"),
    "purple": ("purple", "purple", "violet"),
    "cyan": ("cyan", "cyan", "turquoise"),
}
_BACKGROUND_WORDS = {
    "black": ("black", "black", "pitch black"),
    "white": ("white", "white", "plain white"),
    "gray": ("gray", "grey", "plain gray"),
    "navy": ("navy", "navy", "navy blue"),
    "brown": ("brown", "brown", "dark brown"),
}
_SIZE_WORDS = {"small": ("small", "small", "tiny", "little"), "large": ("large", "large", "big", "huge")}
_MOVING_WORDS = {  # after "a circle ...": participles, then finite verbs
    "left": (("moving left", "moving to the left", "sliding left", "drifting to the left"),
             ("moves left", "moves to the left", "slides left", "drifts to the left")),
    "right": (("moving right", "moving to the right", "sliding right", "drifting to the right"),
              ("moves right", "moves to the right", "slides right", "drifts to the right")),
    "up": (("moving up", "moving upwards", "rising", "floating up"),
           ("moves up", "moves upwards", "rises", "floats up")),
    "down": (("moving down", "moving downwards", "falling", "sinking down"),
             ("moves down", "moves downwards", "falls", "sinks down")),
    "still": (("standing still", "staying still", "not moving", "resting"),
              ("stands still", "stays still", "does not move", "rests motionless")),
}  # fmt: skip
_TEMPLATES = (
    "a {size} {colour} {shape} {doing} on a {background} background",
    "a {size} {colour} {shape} {doing} on a {background} background",
    "on a {background} background, a {size} {colour} {shape} {does}",
    "{size} {colour} {shape} {doing}, {background} background",
    "a {colour} {shape}, {size}, {doing} against a {background} background",
    "the {size} {shape} {does}; it is {colour} and the background is {background}",
    "{background} background with a {size} {colour} {shape} {doing}",
    "a video of a {size} {colour} {shape} that {does} over a {background} background",
    "a {size} {shape} in {colour} {does} in front of a {background} background",
)


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the scene's phrasings, drawn by `rng`."""
    doing, does = _MOVING_WORDS[scene.motion]
    text = rng.choice(_TEMPLATES).format(
        size=rng.choice(_SIZE_WORDS[scene.size]),
        colour=rng.choice(_COLOUR_WORDS[scene.colour]),
        shape=rng.choice(_SHAPE_WORDS[scene.shape]),
        background=rng.choice(_BACKGROUND_WORDS[scene.background]),
        doing=rng.choice(doing),
        does=rng.choice(does),
    )
    return text.replace("a orange", "an orange")


def plain_caption(scene: Scene) -> str:
    """The scene's plainest phrasing."""
    doing = "standing still" if scene.motion == "still" else f"moving {scene.motion}"
    return f"a {scene.size} {scene.colour} {scene.shape} {doing} on a {scene.background} background"


def attribute_table(items: list[Scene]) -> Tensor:
    """Scenes as rows of indices into the attribute tables, int64 [n, 5]."""
    tables = (SHAPES, tuple(COLOURS), tuple(BACKGROUNDS), tuple(MOTIONS), tuple(SIZES))
    return torch.tensor([[t.index(v) for t, v in zip(tables, astuple(s), strict=True)] for s in items])


def coverage(shape: Tensor, radius: Tensor, cx: Tensor, cy: Tensor) -> Tensor:
    """Share of each pixel that an object covers, anti-aliased over one pixel.

    `shape` int64 [B] indexes SHAPES; `radius` [B] pixels, of the circle of equal area; `cx`, `cy` [B, T]
    the centroid in pixels. Returns [B, T, H, W] in 0..1.
    """
    dy = (torch.arange(HEIGHT) + 0.5).view(1, 1, -1, 1) - cy[..., None, None]  # [B, T, H, 1]
    dx = (torch.arange(WIDTH) + 0.5).view(1, 1, 1, -1) - cx[..., None, None]  # [B, T, 1, W]
    r = radius.view(-1, 1, 1, 1)
    circle = torch.sqrt(dx * dx + dy * dy) - r
    square = torch.maximum(dx.abs(), dy.abs()) - r * (math.sqrt(math.pi) / 2)
    slope = dx.abs() * (math.sqrt(3) / 2) - dy / 2
    triangle = torch.maximum(slope, dy) - r * math.sqrt(math.pi / math.sqrt(27))  # apex up
    s = shape.view(-1, 1, 1, 1)
    distance = torch.where(s == 0, circle, torch.where(s == 1, square, triangle))
    return (0.5 - distance).clamp(0, 1)


def render(attributes: Tensor, generator: torch.Generator) -> Tensor:
    """Videos of scenes: int64 [B, 5] rows of `attribute_table` -> float32 [B, 3, T, H, W] in [-1, 1]."""
    n = attributes.shape[0]
    shape, colour, background, motion, size = attributes.unbind(1)
    colours = torch.tensor(list(COLOURS.values()), dtype=torch.float32)[colour]  # [B, 3]
    backgrounds = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)[background]
    direction = torch.tensor(list(MOTIONS.values()))[motion]  # [B, 2]
    uniform = torch.rand(n, 3, generator=generator) * 2 - 1
    radius = torch.tensor(list(SIZES.values()))[size] * (1 + RADIUS_JITTER * uniform[:, 2])
    progress = torch.linspace(-0.5, 0.5, FRAMES) * TRAVEL  # [T]
    centre = torch.tensor([WIDTH / 2, HEIGHT / 2]) + JITTER * uniform[:, :2]  # [B, 2]
    path = centre[:, None] + direction[:, None] * progress[None, :, None]  # [B, T, 2]
    alpha = coverage(shape, radius, path[..., 0], path[..., 1])[:, None]  # [B, 1, T, H, W]
    fore, back = colours.view(n, 3, 1, 1, 1), backgrounds.view(n, 3, 1, 1, 1)
    return (back + alpha * (fore - back)) / 127.5 - 1
