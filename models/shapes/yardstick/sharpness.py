"""Measures how sharp edges are, compared with rendered ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.shapes.yardstick.reader import Reading

_RIM = 1.5  # pixels on either side of an outline
_MIN_STEP = 0.1  # difference to a neighbour, in [-1, 1] RGB, from which on the best fit has an edge


def measure_sharpness(reading: Reading) -> dict[str, float]:
    """Measures the gradient at edges over that of the best fit; 1 is as sharp as a rendered video.

    Gradients are the steepest within a pixel of the edge, so a displaced edge counts as sharp. The best fit
    is in the video's own colours, so inexact colours do not count.

    Returns:
        Ratios at the `rims` of objects and at the edges of the `texture`; NaN if there are none.
    """
    fit = reading.adjusted_fit
    shown, rendered = _gradients(reading.video), _gradients(fit)
    edges = rendered > _MIN_STEP
    rims = torch.zeros_like(edges)
    if len(reading.objects):
        outer, inner = reading.objects.grown(_RIM), reading.objects.grown(-_RIM)
        rims = (outer & ~inner).any(0)
        edges &= ~inner.any(0) | rims
    elsewhere = edges & ~rims
    if reading.background.texture == 0:
        elsewhere = torch.zeros_like(edges)
    shown, rendered = (F.max_pool2d(g, 3, stride=1, padding=1) for g in (shown, rendered))
    return {
        name: float(shown[mask].sum() / rendered[mask].sum()) if mask.any() else float("nan")
        for name, mask in (("rims", edges & rims), ("texture", elsewhere))
    }


def _gradients(video: Tensor) -> Tensor:
    """Returns the length of the gradient in each pixel [T, H, W] of [3, T, H, W], over all channels."""
    right = F.pad(video, (0, 1, 0, 0), mode="replicate").diff(dim=-1)
    down = F.pad(video.transpose(-1, -2), (0, 1, 0, 0), mode="replicate").diff(dim=-1).transpose(-1, -2)
    return (right.square() + down.square()).sum(0).sqrt()
