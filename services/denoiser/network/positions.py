"""Fixed position channels for small models.

Rotary angles give a token only the relative positions of others. On pure noise a small network cannot infer
where in the frame a token is, so it cannot place or move anything: its prediction is the same everywhere.
Wan's image-to-video models take extra input channels in addition to the noisy latents; a smooth basis over
time and space is passed in the same way.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def position_count(order: int) -> int:
    """Returns the number of channels of `position_channels`."""
    return math.comb(order + 3, 3) - 1


def position_channels(order: int, grid: tuple[int, int, int]) -> Tensor:
    """Returns the low 3-D cosine basis: cos(pi a t) cos(pi b y) cos(pi c x) for 1 <= a + b + c <= order.

    t, y, x are the centres of the cells of `grid`, the latents' (T, H, W), in 0..1. The mixed terms of time
    and space represent moving objects. The result is float32 [position_count(order), T, H, W].
    """
    axes = [(torch.arange(n) + 0.5) / n for n in grid]
    channels = []
    for a, b, c in itertools.product(range(order + 1), repeat=3):
        if 1 <= a + b + c <= order:
            t, y, x = (torch.cos(math.pi * k * u) for k, u in zip((a, b, c), axes, strict=True))
            channels.append(t.view(-1, 1, 1) * y.view(1, -1, 1) * x.view(1, 1, -1))
    return torch.stack(channels) if channels else torch.empty(0, *grid)
