"""Reads scene and layout from a video by fitting the world's renderer to it (analysis by synthesis).

`read(video)` returns a `Reading`: the scene as shown, its layout, and the best fit, a video rendered from
both. All other measures use this one fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
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
from models.shapes.yardstick.background import Background, fit_background, tones
from models.shapes.yardstick.objects import Objects, find_objects, fit_lines
from models.shapes.yardstick.outlines import centres, fit_speck, outline_share

# Offset of a whole tone or object's colour up to which it is no residue; largest difference of a channel over
# the full range, 0..1.
TONE_LIMIT: Final = 0.06
_CORE: Final = 0.98  # share of a pixel from which on it shows one tone only
STILL: Final = 6.0  # pixels; an object that travels less is still, others travel 12 to 20
MIN_SPECK: Final = 0.4  # opacity; less is not a speck
_SPECK_AREA: Final = (3.0, 30.0)  # pixels in a frame; a speck has 12.6
_MIN_SPECK_PIXELS: Final = 8  # in all frames; objects may hide the speck in all frames but one
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

    @cached_property
    def adjusted_fit(self) -> Tensor:
        """Best fit in the video's own colours, [3, T, H, W].

        Each of the background's tones and each object's colour moves by the median difference to the video,
        by at most TONE_LIMIT of the range. So an inexact colour is not an artefact.
        """
        video, background, objects = self.video, self.background, self.objects
        shares, grown = objects.shares(), objects.grown(1.5)
        free = ~grown.any(0) if len(objects) else torch.ones(video.shape[1:], dtype=torch.bool)
        tone, shade = tones(background.colour)
        second = background.share.expand_as(free)
        tone = tone + _offset(video, free & (second < 1 - _CORE), tone)
        if background.texture:
            shade = shade + _offset(video, free & (second > _CORE), shade)
        picture = torch.lerp(tone.view(3, 1, 1), shade.view(3, 1, 1), background.share)
        colours = unit_rgb(COLOURS)[objects.colour].clone()
        for i in range(len(objects)):
            hidden = grown[i + 1 :].any(0) if i + 1 < len(objects) else torch.zeros_like(free)
            colours[i] += _offset(video, (shares[i] > _CORE) & ~hidden, colours[i])
        return compose(background, objects, self.speck, picture, colours)


def _offset(video: Tensor, mask: Tensor, colour: Tensor) -> Tensor:
    """Returns the median difference [3] of some pixels to a colour, within bounds."""
    if not mask.any():
        return torch.zeros(3)
    return (video[:, mask].median(1).values - colour).clamp(-2 * TONE_LIMIT, 2 * TONE_LIMIT)


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
        if i == 0 or not _SPECK_AREA[0] <= float(area.max()) <= _SPECK_AREA[1]:
            continue
        at = torch.arange(SIDE) + 0.5
        x, y = ((mask.sum(d) * at).sum(1) / area.clamp_min(1) for d in (1, 2))
        path = fit_speck(share.clamp(-0.5, 1.5), weight, fit_lines(x[None], y[None], area[None])[0])
        inside = (speck_share(path) > 0.9) & (weight > 0)
        shown = float(share[inside].mean()) if int(inside.sum()) >= _MIN_SPECK_PIXELS else 0.0
        if shown > best_share:
            best, best_share = path, shown
    return best
