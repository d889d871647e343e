"""Finds objects in a video: regions of one colour that move along straight lines."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from models.shapes.render import unit_rgb
from models.shapes.world import COLOURS, FRAMES, SIDE
from models.shapes.yardstick.background import Background, distance_to_line, distance_to_tones, tones
from models.shapes.yardstick.outlines import centres, fit_outlines, outline_share

MAX_CANDIDATES: Final = 8  # regions that are compared with outlines, the largest ones
MIN_REGION: Final = 12 * FRAMES  # pixels of a region in all frames; the smallest object has 80 in each
MIN_RADIUS: Final = 4.0  # pixels; the smallest object has 5.06, the speck 2
MIN_SHOWN: Final = (
    0.33  # share of an object's outline that shows its colour; other objects may cover the rest
)
MIN_FRAMES: Final = 8  # frames that show an object
_MIN_CONTRAST: Final = 0.25  # distance of an object's pixel to the background's tones, in [-1, 1] RGB
_OFF_LINE: Final = 0.35  # a pixel further from the line between background and object shows something else
_OPENED: Final = 6 / 9  # share of the 3 x 3 pixels around a pixel of a region's inside
_RIM: Final = (
    4  # pixels from a region, in which mixtures of its colour and the background are its blurred rim
)
_RIM_SHARE: Final = 0.7  # share of a region that is such a mixture, from which on it is no object
_MAX_COLOUR_ERROR: Final = 0.5  # of an object's middle, in [-1, 1] RGB
_MAX_TRANSPARENCY: Final = (
    0.3  # contrast of the background's texture in an object's middle, over that outside
)
_MIN_TEXTURE: Final = 0.04  # variance of the texture's share behind an object that allows to measure it
_SAME: Final = 0.6  # share of a region that lies inside an outline of its colour, and belongs to that object
_TOUCHING: Final = 0.15  # part of a region that one outline does not explain, from which on two are tried


@dataclass(frozen=True)
class Objects:
    """Objects found in a video, the ones behind first.

    Attributes:
        shape, colour: Indices into SHAPES and COLOURS, [N].
        path: Middle of the path (x, y) and travel (x, y), [N, 4].
        radius: Radius of the circle of equal area, [N].
    """

    shape: Tensor
    colour: Tensor
    path: Tensor
    radius: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def shares(self, width: float = 1.0) -> Tensor:
        """Computes the share of each pixel inside the outlines, [N, T, H, W], with edges of a given width."""
        return outline_share(self.shape, centres(self.path), self.radius, width)

    def grown(self, pixels: float) -> Tensor:
        """Returns masks of the outlines enlarged by some pixels, bool [N, T, H, W]."""
        return outline_share(self.shape, centres(self.path), self.radius + pixels) > 0.5

    def select(self, index: Tensor) -> Objects:
        """Returns some of the objects."""
        return Objects(self.shape[index], self.colour[index], self.path[index], self.radius[index])


def find_objects(video: Tensor, background: Background) -> Objects:
    """Finds the objects of a video [3, T, H, W] in [-1, 1]."""
    label = _label_colours(video, background)
    colours, regions = _find_regions(label)
    if not colours:
        return _none()
    colour, mask = _drop_rims(video, background, torch.tensor(colours), torch.stack(regions))
    path, radius = _first_guess(mask)
    found, share, weight = _fit(video, background, colour, mask, path, radius)
    core = _core_colours(video, background, found, mask)
    if not torch.equal(core, colour):
        found, share, weight = _fit(video, background, core, mask, found.path, found.radius)
    shown = mask | ((share > 0.5) & (weight > 0))
    found, mask, shown = _split_touching(found, mask, shown, share, weight)
    opaque = _are_opaque(video, background, found, mask)
    return _order(_choose(found.select(opaque), mask[opaque], shown[opaque]), label)


def _none() -> Objects:
    empty = torch.zeros(0, dtype=torch.int64)
    return Objects(empty, empty, torch.zeros(0, 4), torch.zeros(0))


def _label_colours(video: Tensor, background: Background) -> Tensor:
    """Returns each pixel's colour, an index into COLOURS, or -1 for the background, int64 [T, H, W]."""
    behind = distance_to_tones(video, background.colour, background.texture > 0)
    palette = unit_rgb(COLOURS)
    pixels = video.flatten(1)  # [3, P]
    distance = palette.square().sum(1, keepdim=True) - 2 * palette @ pixels  # less the pixels' own norm
    distance[background.colour] = math.inf
    nearest, label = distance.min(0)
    nearest = (nearest + pixels.square().sum(0)).view_as(behind)
    shown = (nearest < behind) & (behind > _MIN_CONTRAST**2)
    return torch.where(shown, label.view_as(behind), -1)


def _find_regions(label: Tensor) -> tuple[list[int], list[Tensor]]:
    """Returns the colours and masks [T, H, W] of regions that are connected in space and time."""
    counts = torch.bincount(label.flatten() + 1, minlength=len(COLOURS) + 1)[1:]
    found: list[tuple[int, int, Tensor]] = []
    for colour in (counts >= MIN_REGION).nonzero()[:, 0].tolist():
        mask = label == colour
        inside = mask & (F.avg_pool2d(mask.float(), 3, stride=1, padding=1) > _OPENED - 0.01)
        parts, number = ndimage.label(inside.numpy(), structure=np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel(), minlength=number + 1)
        for i in range(1, number + 1):
            if sizes[i] >= MIN_REGION / 2:
                region = mask & _dilate(torch.from_numpy(parts == i), 1)
                found.append((int(region.sum()), colour, region))
    found.sort(key=lambda f: -f[0])
    found = [f for f in found[:MAX_CANDIDATES] if f[0] >= MIN_REGION]
    return [f[1] for f in found], [f[2] for f in found]


def _dilate(mask: Tensor, pixels: int) -> Tensor:
    """Returns masks [..., H, W] enlarged by some pixels."""
    side = 2 * pixels + 1
    rows = F.max_pool2d(mask.float(), (1, side), stride=1, padding=(0, pixels))
    return F.max_pool2d(rows, (side, 1), stride=1, padding=(pixels, 0)) > 0


def _drop_rims(video: Tensor, background: Background, colour: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Drops blurred rims of other regions: mixtures of their colour and the background, near them."""
    tone, shade = tones(background.colour)
    behind = (tone, (tone + shade) / 2, shade) if background.texture else (tone,)
    near = _dilate(mask, _RIM)
    rims = torch.zeros_like(mask)
    for i, c in enumerate(colour.tolist()):
        others = colour != c
        if (near[i] & mask[others]).any():
            own = unit_rgb(COLOURS)[c]
            distance = torch.stack([distance_to_line(video, b, own) for b in behind]).amin(0)
            rims[others] |= mask[others] & near[i] & (distance < _OFF_LINE**2)
    keep = rims.sum((1, 2, 3)) <= _RIM_SHARE * mask.sum((1, 2, 3))
    return colour[keep], mask[keep]


def _fit(
    video: Tensor, background: Background, colour: Tensor, mask: Tensor, path: Tensor, radius: Tensor
) -> tuple[Objects, Tensor, Tensor]:
    """Fits outlines to regions. Returns them with the shares and weights of pixels."""
    share, weight = _shares(video, background, colour, mask)
    outline = fit_outlines(share, weight, path, radius)
    return Objects(outline.shape, colour, outline.path, outline.radius), share, weight


def _middles(found: Objects) -> Tensor:
    """Returns masks of the middle of objects, bool [N, T, H, W]."""
    circle = torch.zeros(len(found), dtype=torch.int64)
    return outline_share(circle, centres(found.path), 0.35 * found.radius) > 0.5


def _core_colours(video: Tensor, background: Background, found: Objects, mask: Tensor) -> Tensor:
    """Returns the colours [N] in the middle of objects, where blur changes them least."""
    palette = unit_rgb(COLOURS)
    middle = _middles(found)
    colours = found.colour.clone()
    for i in range(len(found)):
        others = mask[torch.arange(len(mask)) != i].any(0)
        core = video[:, middle[i] & ~others]
        if core.shape[1] >= FRAMES:
            distance = (palette - core.median(1).values).norm(dim=1)
            distance[background.colour] = math.inf
            colours[i] = distance.argmin()
    return colours


def _shares(video: Tensor, background: Background, colour: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the share of each candidate in each pixel, and the weight of the pixel, [N, T, H, W].

    Pixels that show something other than background and candidate have no weight.
    """
    offset = video - background.picture[:, None]  # [3, T, H, W]
    axis = unit_rgb(COLOURS)[colour].view(-1, 3, 1, 1) - background.picture  # [N, 3, H, W]
    contrast = axis.square().sum(1).clamp_min(0.05)  # [N, H, W]
    share = torch.einsum("cthw,nchw->nthw", offset, axis) / contrast[:, None]
    size = offset.square().sum(0)  # [T, H, W]
    off_line = size - share.square() * contrast[:, None]  # squared
    taken = torch.zeros_like(mask)
    for i, c in enumerate(colour.tolist()):
        for j, d in enumerate(colour.tolist()):
            if c != d:
                taken[i] |= mask[j]
    weight = ((off_line < _OFF_LINE**2) & ~taken).float()
    weight = weight * (contrast / contrast.mean((1, 2), keepdim=True))[:, None]
    return share.clamp(-0.5, 1.5), weight


def _first_guess(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the paths [N, 4] and radii [N] of regions [N, T, H, W]."""
    at = torch.arange(SIDE) + 0.5
    area = mask.sum((2, 3)).float()  # [N, T]
    x = (mask.sum(2) * at).sum(2) / area.clamp_min(1)
    y = (mask.sum(3) * at).sum(2) / area.clamp_min(1)
    usual = torch.stack([a[a > 0].quantile(0.7) if bool((a > 0).any()) else a.new_tensor(1.0) for a in area])
    weight = area.clamp_max(usual[:, None])
    return fit_lines(x, y, weight), (usual / math.pi).sqrt().clamp(MIN_RADIUS, 12.0)


def fit_lines(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Fits paths [N, 4], middle and travel, to positions [N, T] with weights [N, T]."""
    time = torch.linspace(-0.5, 0.5, FRAMES)
    total = weight.sum(1).clamp_min(1e-6)
    mean_time = (weight * time).sum(1) / total
    centred = time - mean_time[:, None]
    spread = (weight * centred.square()).sum(1).clamp_min(1e-2 * total / FRAMES)
    columns = []
    for values in (x, y):
        mean = (weight * values).sum(1) / total
        slope = (weight * centred * (values - mean[:, None])).sum(1) / spread
        columns.append((mean - slope * mean_time, slope))
    (mx, tx), (my, ty) = columns
    return torch.stack([mx, my, tx, ty], 1)


def _split_touching(
    found: Objects, mask: Tensor, shown: Tensor, share: Tensor, weight: Tensor
) -> tuple[Objects, Tensor, Tensor]:
    """Replaces each candidate whose region one outline does not explain by two, if they explain it better."""
    size = mask.sum((1, 2, 3))
    # Pixels of the region outside the outline, and visible background inside it.
    left = (mask & ~found.grown(1.0)) | (found.grown(-1.0) & ~shown & (weight > 0))
    unexplained = left.sum((1, 2, 3)) / size
    objects, masks, index = [], [], []
    for i in range(len(found)):
        chosen, parts = found.select(torch.tensor([i])), mask[i : i + 1]
        if unexplained[i] > _TOUCHING:
            halves = torch.stack(_halve(mask[i]))
            if halves.sum((1, 2, 3)).min() >= MIN_REGION:
                own = weight[i] * ~halves.flip(0)
                outline = fit_outlines(share[i].expand(2, -1, -1, -1), own, *_first_guess(halves))
                both = Objects(outline.shape, found.colour[i].expand(2), outline.path, outline.radius)
                rest = (mask[i] & ~both.grown(1.0).any(0)) | (
                    both.grown(-1.0).any(0) & ~shown[i] & (weight[i] > 0)
                )
                better = rest.sum() < 0.5 * unexplained[i] * size[i]
                if better and bool((both.radius >= MIN_RADIUS).all()):
                    chosen, parts = both, halves
        objects.append(chosen)
        masks.append(parts)
        index += [i] * len(parts)
    columns = (torch.cat([getattr(o, f.name) for o in objects]) for f in fields(Objects))
    return Objects(*columns), torch.cat(masks), shown[index]


def _halve(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Divides the pixels of a region [T, H, W] between two moving centres."""
    t, y, x = mask.nonzero().float().unbind(1)
    time = t / (FRAMES - 1) - 0.5
    at = torch.stack([x, y], 1) + 0.5
    design = torch.stack([torch.ones_like(time), time], 1)
    best, best_error = None, math.inf
    centre = at.mean(0)
    spread = at.std(0)
    for dx, dy in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, -1.0)):
        near = (at - centre) @ torch.tensor([dx, dy]) / spread.mean() > 0
        error = math.inf
        for _ in range(12):
            if not 0 < int(near.sum()) < len(near):
                break
            squares = []
            for chosen in (near, ~near):
                line = torch.linalg.lstsq(design[chosen], at[chosen]).solution
                squares.append((at - design @ line).square().sum(1))
            before, near = near, squares[0] < squares[1]
            error = float(torch.minimum(*squares).sum())
            if torch.equal(near, before):
                break
        if error < best_error:
            best, best_error = near, error
    first = torch.zeros_like(mask)
    if best is not None:
        first[mask.nonzero()[best].unbind(1)] = True
    return first, mask & ~first


def _are_opaque(video: Tensor, background: Background, found: Objects, mask: Tensor) -> Tensor:
    """Returns whether objects [N] have a colour of the world and hide the background; ghosts do not."""
    tone, shade = tones(background.colour)
    axis = shade - tone
    observed = torch.tensordot(axis, video, 1) / axis.square().sum()  # [T, H, W], as the texture's share
    cores, middles = found.grown(-1.5), _middles(found)
    opaque = torch.zeros(len(found), dtype=torch.bool)
    for i in range(len(found)):
        free = ~mask[torch.arange(len(mask)) != i].any(0)
        core = cores[i] & free
        middle = core & middles[i] if (core & middles[i]).any() else core
        if not core.any():
            continue
        colour = unit_rgb(COLOURS)[found.colour[i]]
        opaque[i] = (video[:, middle].median(1).values - colour).norm() <= _MAX_COLOUR_ERROR
        share = background.share.expand_as(core)[core]
        centred = share - share.mean()
        if background.texture and centred.square().mean() > _MIN_TEXTURE:
            opaque[i] &= (centred * observed[core]).mean() / centred.square().mean() < _MAX_TRANSPARENCY
    return opaque


def _choose(found: Objects, mask: Tensor, shown: Tensor) -> Objects:
    """Drops candidates that are too small, that belong to larger ones, or that hardly show their colour.

    `mask` and `shown` are the candidates' regions, and the pixels that show their colour, [N, T, H, W].
    """
    outlines = found.shares() > 0.5
    grown = found.grown(2.0)
    chosen: list[int] = []
    for i in mask.sum((1, 2, 3)).argsort(descending=True).tolist():
        same = [j for j in chosen if found.colour[j] == found.colour[i]]
        inside = torch.zeros_like(mask[i])
        for j in same:
            inside |= grown[j]
        if same and (mask[i] & inside).sum() > _SAME * mask[i].sum():
            continue
        seen = (shown[i] & outlines[i]).sum((1, 2))
        area = outlines[i].sum((1, 2)).clamp_min(1)
        frames = int((seen > 0.25 * MIN_SHOWN * area).sum())
        large = float(found.radius[i]) >= MIN_RADIUS
        if large and float(seen.sum()) >= MIN_SHOWN * float(area.sum()) and frames >= MIN_FRAMES:
            chosen.append(i)
    return found.select(torch.tensor(chosen, dtype=torch.int64))


def _order(found: Objects, label: Tensor) -> Objects:
    """Sorts objects, the ones behind first."""
    n = len(found)
    outlines = found.shares() > 0.5
    before = torch.zeros(n, n)  # pixels in which object i hides object j
    for i in range(n):
        for j in range(n):
            if found.colour[i] != found.colour[j]:
                both = outlines[i] & outlines[j]
                before[i, j] = (label[both] == found.colour[i]).sum()
    return found.select((before > before.T).sum(1).argsort(stable=True))
