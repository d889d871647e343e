"""Reads the attributes of a scene from a video by plain image analysis, without a learned model.

Objects are the connected regions whose colour is nearer to an object colour than to the background; their
number and positions are not assumed. Each object is measured in its own frame of reference: its pictures,
aligned at the centroids and averaged over time, are compared with templates of the world's shapes in many
radii, offsets and degrees of blur. Every attribute is a forced choice: it gets the value that it resembles
most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from models.movingshapes.world import (
    BACKGROUNDS,
    COLOURS,
    HEIGHT,
    MOTIONS,
    SHAPES,
    SIZES,
    TRAVEL,
    WIDTH,
    Scene,
    Thing,
    coverage,
)

OBJECT_FIELDS: Final = ("shape", "colour", "motion", "size")
FIELDS: Final = ("background", "count", *OBJECT_FIELDS)

MIN_SHARE: Final = 0.4  # minimum share of the object's colour in a pixel of the object; less is a residue
MIN_COLOUR_DISTANCE: Final = 70.0  # minimum RGB distance of two colours of the world
MIN_AREA: Final = 16  # pixels; the smallest object of the world has 44
CORE_RADIUS: Final = 1.5  # pixels; a disc of this radius around the centroid lies inside every object
WINDOW: Final = 32  # pixels, side of the aligned pictures
# Radii, offsets in x and y, and standard deviations of the blur of the templates, in pixels.
RADII: Final = tuple(3.0 + 0.25 * i for i in range(21))
OFFSETS: Final = (-1.0, -0.5, 0.0, 0.5, 1.0)
BLURS: Final = (0.5, 1.0, 1.5)


def read_scene(video: Tensor) -> Scene:
    """Returns the most plausible scene of a video [3, T, H, W] with values of about [-1, 1].

    Objects are in the order in which a prompt names them, the upper left one first. The result may contain no
    object, or more objects than the world ever shows. Raises ValueError for another shape, NaN or infinity.
    """
    if video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"video: must be [3, frames, height, width], not {list(video.shape)}")
    if not video.isfinite().all():
        raise ValueError("video: contains NaN or infinity; the model diverged")
    rgb = (video.detach().cpu().float().clamp(-1, 1) + 1) * 127.5
    back = rgb.flatten(1).median(dim=1).values  # [3]: objects cover less than half
    difference = rgb - back.view(3, 1, 1, 1)
    frames, centroids = _objects(difference, back)
    time, difference = frames / max(1, rgb.shape[1] - 1), difference[:, frames]
    travel = TRAVEL[1 if centroids.shape[1] == 1 else 2]
    objects = []
    for path in centroids.unbind(1):  # [F, 2]
        colour = _core(difference, path)
        shape, size = _best_template(_average_windows(_share(difference, colour), path))
        objects.append(Thing(shape, _nearest(back + colour, COLOURS), _motion(time, path, travel), size))
    return Scene(_nearest(back, BACKGROUNDS), tuple(objects))


def compare(shown: Scene, wanted: Scene) -> dict[str, bool]:
    """Returns for each of FIELDS whether the scene matches `wanted`, and for `all` whether every field does.

    An attribute of objects matches if it does for every wanted object, in order; if an object is missing,
    none of these attributes matches. If the scene has too many objects, those that agree best are compared,
    and only `count` reports the surplus.
    """

    def agreement(chosen: Sequence[Thing]) -> dict[str, bool]:
        pairs = list(zip(chosen, wanted.things, strict=True))
        return {f: all(getattr(a, f) == getattr(b, f) for a, b in pairs) for f in OBJECT_FIELDS}

    choices = itertools.combinations(shown.things, len(wanted.things))
    missing = dict.fromkeys(OBJECT_FIELDS, False)
    right = {
        "background": shown.background == wanted.background,
        "count": len(shown.things) == len(wanted.things),
    } | max(map(agreement, choices), key=lambda a: sum(a.values()), default=missing)
    return right | {"all": all(right.values())}


def accuracy(videos: Tensor | Sequence[Tensor], wanted: Sequence[Scene]) -> dict[str, float]:
    """Computes the share of videos [B, 3, T, H, W] that match `wanted`, for each of FIELDS and for `all`."""
    hits = [compare(read_scene(v), w) for v, w in zip(videos, wanted, strict=True)]
    return {f: sum(h[f] for h in hits) / len(hits) for f in (*FIELDS, "all")}


def _objects(difference: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the objects in the difference [3, T, H, W] to the background [3].

    The number of objects is the largest that a third of the frames show, so that objects that touch for a
    while remain two. Only frames with exactly that number are used. Returns, for F used frames and K objects,
    the indices of the frames [F] and the centroids [F, K, 2] (x, y) in pixels.
    """
    _, frames, height, width = difference.shape
    axes = torch.tensor(list(COLOURS.values())) - back  # [n, 3]
    smooth = F.avg_pool2d(difference, 3, stride=1, padding=1, count_include_pad=False).flatten(1)
    # Position of each pixel between the background (0) and the object colour that it resembles most (1).
    shown = (
        (axes / axes.square().sum(1, keepdim=True).clamp_min(MIN_COLOUR_DISTANCE**2) @ smooth)
        .amax(0)
        .view(frames, height, width)
    )
    labels = _connected(shown > MIN_SHARE).flatten(1)  # [T, H*W]

    mass = shown.flatten(1).clamp(0, 1)
    y, x = (torch.arange(n) + 0.5 for n in (height, width))
    parts = torch.stack(
        [torch.ones_like(mass), mass, mass * x.repeat(height), mass * y.repeat_interleave(width)]
    )
    sums = torch.zeros(4, frames, height * width + 1).scatter_add_(2, labels.expand(4, -1, -1), parts)
    large = sums[0] >= MIN_AREA  # [T, labels]
    large[:, 0] = False  # the background's label
    places = (sums[2:] / sums[1].clamp_min(1e-6)).permute(1, 2, 0)  # [T, labels, 2]

    counts = large.sum(1)  # [T]
    count = int(counts.sort().values[-max(1, frames // 3)])
    used = (counts == count).nonzero()[:, 0]
    centroids = places[used][large[used]].view(len(used), count, 2)
    order = centroids.sum(-1).argsort(dim=1)  # the upper left one first
    return used, centroids.gather(1, order[..., None].expand(-1, -1, 2))


def _connected(mask: Tensor) -> Tensor:
    """Labels the connected regions (8 neighbours) of each mask [T, H, W]; int64, 0 outside the regions."""
    inside = mask.float()
    labels = (torch.arange(mask[0].numel()) + 1.0).view(1, *mask.shape[1:]) * inside
    while not torch.equal(grown := _spread(labels) * inside, labels):
        labels = grown
    return labels.long()


def _spread(values: Tensor) -> Tensor:
    """Returns the maximum of each pixel of [..., H, W] and its 8 neighbours. Values must not be negative."""
    values = F.pad(values, (1, 1, 1, 1))
    for dim in (-1, -2):
        low, middle, high = (values.narrow(dim, i, values.shape[dim] - 2) for i in range(3))
        values = torch.maximum(torch.maximum(low, middle), high)
    return values


def _nearest(rgb: Tensor, palette: dict[str, tuple[int, int, int]]) -> str:
    table = torch.tensor(list(palette.values()), dtype=torch.float32)
    return list(palette)[int((table - rgb).norm(dim=1).argmin())]


def _motion(time: Tensor, path: Tensor, travel: float) -> str:
    """Returns the motion nearest to the straight line fitted to a path [F, 2] (x, y) at times [F] in 0..1."""
    time = time - time.mean()
    moved = (time[:, None] * path).sum(0) / time.square().sum().clamp_min(1e-6)  # pixels from start to end
    targets = torch.tensor(list(MOTIONS.values())) * travel
    return list(MOTIONS)[int((targets - moved).norm(dim=1).argmin())]


def _core(difference: Tensor, path: Tensor) -> Tensor:
    """Returns the median [3] of the pixels of a difference [3, F, H, W] around a path [F, 2]."""
    height, width = difference.shape[2:]
    dx = torch.arange(width) + 0.5 - path[:, :1]  # [F, W]
    dy = torch.arange(height) + 0.5 - path[:, 1:]
    return (
        difference[:, dx.square()[:, None] + dy.square()[:, :, None] <= CORE_RADIUS**2].median(dim=1).values
    )


def _share(difference: Tensor, colour: Tensor) -> Tensor:
    """Returns each pixel's share of an object [F, H, W], given the object's difference [3] to the
    background."""
    share = (difference * colour.view(3, 1, 1, 1)).sum(0) / colour.square().sum().clamp_min(1.0)
    return share.clamp(-0.5, 1.5)


def _average_windows(picture: Tensor, path: Tensor) -> Tensor:
    """Averages windows of pictures [F, H, W] around a path [F, 2] to [WINDOW, WINDOW].

    Pixels outside the pictures are ignored.
    """
    frames, height, width = picture.shape
    step = torch.arange(WINDOW) + 0.5 - WINDOW / 2
    x = (path[:, :1] + step) * 2 / width - 1  # [F, WINDOW], in grid_sample's units
    y = (path[:, 1:] + step) * 2 / height - 1
    shape = (frames, WINDOW, WINDOW)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    both = torch.stack([picture, torch.ones_like(picture)], dim=1)  # [F, 2, H, W]; zero outside
    total, weights = F.grid_sample(both, grid, align_corners=False).sum(0)
    return total / weights.clamp_min(0.5)  # type: ignore[no-any-return]


def _best_template(picture: Tensor) -> tuple[str, str]:
    """Returns shape and size of the template with the highest correlation to a picture [WINDOW, WINDOW]."""
    bank, names = _templates()
    flat = picture.flatten()
    shape, radius = names[int((bank @ (flat - flat.mean())).argmax())]
    return shape, min(SIZES, key=lambda s: abs(math.log(radius / SIZES[s])))


@cache
def _templates() -> tuple[Tensor, list[tuple[str, float]]]:
    """Builds the templates of every shape, radius, offset and blur.

    Returns rows [n, WINDOW * WINDOW] of mean 0 and norm 1, and for each row its shape and radius.
    """
    kinds = list(itertools.product(range(len(SHAPES)), RADII))
    offsets = list(itertools.product(OFFSETS, OFFSETS))
    at = torch.tensor(offsets).expand(len(kinds), -1, -1)
    shapes, radii = torch.tensor([s for s, _ in kinds]), torch.tensor([r for _, r in kinds])
    pictures = coverage(shapes, radii, WIDTH / 2 + at[..., 0], HEIGHT / 2 + at[..., 1]).flatten(0, 1)
    top, left = (HEIGHT - WINDOW) // 2, (WIDTH - WINDOW) // 2
    pictures = pictures[:, top : top + WINDOW, left : left + WINDOW]
    rows = torch.cat([_blur(pictures, sigma) for sigma in BLURS]).flatten(1)
    names = [(SHAPES[s], r) for s, r in kinds for _ in offsets] * len(BLURS)
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1), names


def _blur(pictures: Tensor, sigma: float) -> Tensor:
    """Blurs pictures [n, H, W] with a Gaussian of standard deviation `sigma` pixels."""
    kernel = torch.exp(-(torch.arange(-5, 6) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    rows = F.conv2d(pictures[:, None], kernel, padding=(0, 5))
    return F.conv2d(rows, kernel.transpose(2, 3), padding=(5, 0))[:, 0]
