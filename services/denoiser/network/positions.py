"""Fixed position channels for small models.

Rotary angles tell a token only where others are relative to it. On pure noise a small network cannot
find out where in the frame it is, so it cannot place or move anything: what it predicts is the same
everywhere. Wan's image-to-video models take extra input channels beside the noisy latents; a smooth
basis over time and space uses the same door.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def position_count(order: int) -> int:
    """Number of channels that `position_channels` makes."""
    return math.comb(order + 3, 3) - 1


def position_channels(order: int, grid: tuple[int, int, int]) -> Tensor:
    """The low 3-D cosine basis: cos(pi a t) cos(pi b y) cos(pi c x) for 1 <= a + b + c <= order.

    t, y, x are the centres of the cells of `grid`, the latents' (T, H, W), in 0..1. The mixed terms of
    time and space are what a moving object is made of. Returns float32 [position_count(order), T, H, W].
    """
    axes = [(torch.arange(n) + 0.5) / n for n in grid]
    channels = []
    for a, b, c in itertools.product(range(order + 1), repeat=3):
        if 1 <= a + b + c <= order:
            t, y, x = (torch.cos(math.pi * k * u) for k, u in zip((a, b, c), axes, strict=True))
            channels.append(t.view(-1, 1, 1) * y.view(1, -1, 1) * x.view(1, 1, -1))
    return torch.stack(channels) if channels else torch.empty(0, *grid)
