"""Reads the attributes back from a video by plain image analysis: no learned judge."""

from __future__ import annotations

import torch
from torch import Tensor

from models.movingshapes.world import (
    BACKGROUNDS,
    COLOURS,
    RADIUS_JITTER,
    SHAPES,
    SIZES,
    TRAVEL,
    Scene,
    coverage,
)

FIELDS = ("shape", "colour", "background", "motion", "size")


def _nearest(rgb: Tensor, palette: dict[str, tuple[int, int, int]]) -> str:
    table = torch.tensor(list(palette.values()), dtype=torch.float32)
    return list(palette)[int((table - rgb).norm(dim=1).argmin())]


def read_scene(video: Tensor) -> Scene:
    """The scene that a video [3, T, H, W] in [-1, 1] shows most plausibly.

    Background: median of the border. Colour: median of the pixels farthest from it. Motion: the line
    through the object's centroids. Shape and size: the template that differs least, at those centroids.
    """
    rgb = (video.float().clamp(-1, 1) + 1) * 127.5  # [3, T, H, W]
    border = torch.cat([rgb[:, :, :2].flatten(1), rgb[:, :, -2:].flatten(1),
                        rgb[:, :, :, :2].flatten(1), rgb[:, :, :, -2:].flatten(1)], dim=1)  # fmt: skip
    back = border.median(dim=1).values  # [3]
    far = (rgb - back.view(3, 1, 1, 1)).norm(dim=0)  # [T, H, W]
    pixels = rgb.flatten(2)  # [3, T, H*W]
    chosen = far.flatten(1).topk(24, dim=1).indices  # [T, 24]
    fore = torch.gather(pixels, 2, chosen.expand(3, -1, -1)).flatten(1).median(dim=1).values  # [3]
    axis = fore - back
    mask = ((rgb - back.view(3, 1, 1, 1)) * axis.view(3, 1, 1, 1)).sum(0) / axis.square().sum().clamp_min(1.0)
    mask = mask.clamp(0, 1)  # [T, H, W]: how much of the object a pixel shows
    weight = torch.where(mask > 0.3, mask, 0.0)
    total = weight.sum((1, 2)).clamp_min(1e-3)
    t, h, w = mask.shape
    cy = (weight * (torch.arange(h) + 0.5).view(1, -1, 1)).sum((1, 2)) / total
    cx = (weight * (torch.arange(w) + 0.5).view(1, 1, -1)).sum((1, 2)) / total
    time = torch.linspace(-0.5, 0.5, t)
    dx, dy = ((time * c).sum() / time.square().sum() for c in (cx, cy))  # pixels over the whole clip
    if max(abs(dx), abs(dy)) < TRAVEL / 3:
        motion = "still"
    elif abs(dx) > abs(dy):
        motion = "right" if dx > 0 else "left"
    else:
        motion = "down" if dy > 0 else "up"
    shape, size = _nearest_template(mask, cx, cy)
    return Scene(shape, _nearest(fore, COLOURS), _nearest(back, BACKGROUNDS), motion, size)


def _nearest_template(mask: Tensor, cx: Tensor, cy: Tensor) -> tuple[str, str]:
    candidates = [
        (s, name, radius * (1 + k * RADIUS_JITTER))
        for s in range(len(SHAPES))
        for name, radius in SIZES.items()
        for k in (-1, 0, 1)
    ]
    n = len(candidates)
    inner = slice(1, -1)  # the first and last frame may cut the object off
    templates = coverage(
        torch.tensor([c[0] for c in candidates]),
        torch.tensor([c[2] for c in candidates]),
        cx[inner].expand(n, -1),
        cy[inner].expand(n, -1),
    )
    best = candidates[int((templates - mask[inner]).square().mean((1, 2, 3)).argmin())]
    return SHAPES[best[0]], best[1]


def accuracy(videos: Tensor, wanted: list[Scene]) -> dict[str, float]:
    """Share of videos [B, 3, T, H, W] that show what was wanted, by attribute and for `all` five at once."""
    shown = [read_scene(v) for v in videos]
    hits = torch.tensor(
        [[getattr(a, f) == getattr(b, f) for f in FIELDS] for a, b in zip(shown, wanted, strict=True)]
    )
    rates = {f: float(hits[:, i].float().mean()) for i, f in enumerate(FIELDS)}
    return rates | {"all": float(hits.all(1).float().mean())}
