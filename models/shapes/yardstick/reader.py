"""Reads scene and layout from a video by fitting the world's renderer to it (analysis by synthesis).

`read(video)` returns a `Reading`: the scene as shown, its layout, and the best fit, a video rendered from
both. All other measures use this one fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from models.shapes.layout import SPECK_RADIUS, Layout
from models.shapes.render import speck_tone, unit_rgb
from models.shapes.world import (
    COLOURS,
    FRAMES,
    MAX_OBJECTS,
    PLACES,
    SHAPES,
    SIDE,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
)
from models.shapes.yardstick.background import Background, fit_background
from models.shapes.yardstick.objects import Objects, find_objects, fit_lines
from models.shapes.yardstick.outlines import centres, fit_speck, outline_share

STILL: Final = 6.0  # pixels; an object that travels less is still, others travel 12 to 20
MIN_SPECK: Final = 0.4  # opacity; less is not a speck
_SPECK_AREA: Final = (3.0, 30.0)  # pixels in a frame; a speck has 12.6
_MIN_SPECK_FRAMES: Final = 4
_SPECK_CONTRAST: Final = 0.5  # distance of the speck's tone to what is behind it, below which it is invisible


@dataclass(frozen=True)
class Reading:
    """Result of `read`.

    Attributes:
        scene: Scene as shown. It may contain any number of objects; every place is named.
        objects: Fitted objects, the ones behind first, in the scene's order given by `order`.
        order: Index of each of the scene's things in `objects`.
        background: Fitted background.
        speck: Path of the speck (middle, travel), [4], or None.
        best_fit: Video rendered from the fit, [3, T, H, W].
        video: The video that was read, [3, T, H, W] in [-1, 1].
    """

    scene: Scene
    objects: Objects
    order: tuple[int, ...]
    background: Background
    speck: Tensor | None
    best_fit: Tensor
    video: Tensor

    @property
    def layout(self) -> Layout:
        """Returns the layout as of one video; of more than MAX_OBJECTS objects, that of the first ones."""
        chosen = list(self.order[:MAX_OBJECTS])
        path, radius = torch.full((MAX_OBJECTS, 4), SIDE / 2), torch.full((MAX_OBJECTS,), SIZES["small"])
        path[:, 2:] = 0
        path[: len(chosen)], radius[: len(chosen)] = self.objects.path[chosen], self.objects.radius[chosen]
        front = max(range(len(chosen)), key=lambda i: chosen[i], default=0)
        speck = torch.full((4,), SIDE / 2) if self.speck is None else self.speck
        return Layout(
            middle=path[None, :, :2],
            travel=path[None, :, 2:],
            radius=radius[None],
            front=torch.tensor([front]),
            period=self.background.period[None],
            angle=self.background.angle[None],
            phase=self.background.phase[None],
            speck=torch.tensor([0.0 if self.speck is None else 1.0]),
            speck_middle=speck[None, :2],
            speck_travel=speck[None, 2:],
        )


@torch.no_grad()
def read(video: Tensor) -> Reading:
    """Reads a video [3, FRAMES, SIDE, SIDE] with values of about [-1, 1].

    Raises ValueError for another shape, NaN or infinity.
    """
    if video.shape != (3, FRAMES, SIDE, SIDE):
        raise ValueError(f"video: must be {[3, FRAMES, SIDE, SIDE]}, not {list(video.shape)}")
    if not video.isfinite().all():
        raise ValueError("video: contains NaN or infinity; the model diverged")
    video = video.detach().cpu().float().clamp(-1, 1)
    background = fit_background(video.median(1).values)
    objects = find_objects(video, background)
    fit = compose(background, objects, None)
    speck = _find_speck(video, fit, objects, background.colour)
    if speck is not None:
        fit = compose(background, objects, speck)
    things = [_name(objects, i) for i in range(len(objects))]
    order = sorted(range(len(objects)), key=lambda i: float(objects.path[i, :2].sum()))  # upper left first
    scene = Scene(
        list(COLOURS)[background.colour], TEXTURES[background.texture], tuple(things[i] for i in order)
    )
    return Reading(scene, objects, tuple(order), background, speck, fit, video)


def compose(
    background: Background,
    objects: Objects,
    speck: Tensor | None,
    picture: Tensor | None = None,
    colours: Tensor | None = None,
) -> Tensor:
    """Renders a fit to a video [3, T, H, W], with any number of objects.

    Args:
        background, objects, speck: Parts of the fit.
        picture: Picture of the background, [3, H, W]; in the world's tones by default.
        colours: Colours of the objects in [-1, 1], [N, 3]; the world's by default.
    """
    shown = background.picture if picture is None else picture
    colours = unit_rgb(COLOURS)[objects.colour] if colours is None else colours
    video = shown[:, None].expand(-1, FRAMES, -1, -1)
    if speck is not None:
        video = torch.lerp(video, _speck_colour(background.colour), speck_share(speck))
    for colour, share in zip(colours, objects.shares(), strict=True):
        video = torch.lerp(video, colour.view(3, 1, 1, 1), share)
    return video.contiguous()


def speck_share(speck: Tensor) -> Tensor:
    """Returns the share of pixels [T, H, W] inside a speck with a path [4]."""
    circle = torch.zeros(1, dtype=torch.int64)
    return outline_share(circle, centres(speck[None]), torch.tensor([SPECK_RADIUS]))[0]


def _speck_colour(colour: int) -> Tensor:
    return speck_tone(torch.tensor([[colour]]))[0]  # [3, 1, 1, 1]


def _name(objects: Objects, i: int) -> Thing:
    """Names the attributes of an object."""
    x, y, dx, dy = objects.path[i].tolist()
    if math.hypot(dx, dy) < STILL:
        motion = "still"
    elif abs(dx) > abs(dy):
        motion = "right" if dx > 0 else "left"
    else:
        motion = "down" if dy > 0 else "up"
    half = (1 if x > SIDE / 2 else -1, 1 if y > SIDE / 2 else -1)
    radius = float(objects.radius[i])
    return Thing(
        SHAPES[int(objects.shape[i])],
        list(COLOURS)[int(objects.colour[i])],
        motion,
        min(SIZES, key=lambda s: abs(math.log(radius / SIZES[s]))),
        next(name for name, where in PLACES.items() if where == half),
    )


def _find_speck(video: Tensor, fit: Tensor, objects: Objects, colour: int) -> Tensor | None:
    """Finds the path [4] of a speck in what the fit [3, T, H, W] does not explain."""
    axis = _speck_colour(colour) - fit
    contrast = axis.square().sum(0)
    offset = video - fit
    share = (offset * axis).sum(0) / contrast.clamp_min(0.05)
    off_line = offset.square().sum(0) - share.square() * contrast
    visible = (contrast > _SPECK_CONTRAST**2) & ~objects.grown(1.0).any(0)
    weight = (visible & (off_line < 0.35**2)).float()
    spots = F.avg_pool2d(share.clamp(0, 1) * weight, 3, stride=1, padding=1) > MIN_SPECK
    parts, number = ndimage.label(spots.numpy(), structure=torch.ones(3, 3, 3).numpy())
    labels = torch.from_numpy(parts).long()
    best, best_share = None, MIN_SPECK
    sizes = torch.bincount(labels.flatten(), minlength=number + 1)
    sizes[0] = 0
    for i in sizes.argsort(descending=True)[:4].tolist():
        mask = labels == i
        area = mask.sum((1, 2)).float()
        frames = int((area >= _SPECK_AREA[0]).sum())
        if i == 0 or frames < _MIN_SPECK_FRAMES or area.max() > _SPECK_AREA[1]:
            continue
        at = torch.arange(SIDE) + 0.5
        x, y = ((mask.sum(d) * at).sum(1) / area.clamp_min(1) for d in (1, 2))
        path = fit_speck(share.clamp(-0.5, 1.5), weight, fit_lines(x[None], y[None], area[None])[0])
        inside = (speck_share(path) > 0.9) & (weight > 0)
        shown = float(share[inside].mean()) if int(inside.sum()) >= 8 * _MIN_SPECK_FRAMES else 0.0
        if shown > best_share:
            best, best_share = path, shown
    return best
