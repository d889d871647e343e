"""Sizes of the measured networks and inputs, and their operation counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from services.denoiser.network.wan import Grid, WanConfig

# Noise levels of LightX2V's four steps.
SIGMAS: Final = (1.0, 0.9375, 0.8333333333333334, 0.625, 0.0)
REGIONS: Final = {"region10": 0.1, "region30": 0.3, "region50": 0.5}


@dataclass(frozen=True)
class Network:
    """Network to measure.

    Attributes:
        config: Sizes of the network.
        repeats: Number of runs of which a time is the median.
    """

    config: WanConfig
    repeats: int


@dataclass(frozen=True)
class Scale:
    """Sizes of networks and inputs.

    Attributes:
        networks: Networks by the prefix of their figures.
        grid: Tokens along time, rows and columns.
        keys: Tokens of a text including padding.
        copy_bytes: Size of the device-to-device copy, in bytes.
        matrix: Rows and columns of the multiplied matrices.
        cross: Heads and channels per head for which the kernel is timed.
        engine: Networks for TensorRT: a small one and a part of a large one.
    """

    networks: dict[str, Network]
    grid: Grid
    keys: int
    copy_bytes: int
    matrix: int
    cross: tuple[tuple[int, int], ...]
    engine: dict[str, WanConfig]

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)


_SMALL: Final = WanConfig(heads=2, head_dim=32, ffn_dim=96, layers=2, text_dim=16, freq_dim=16)

SCALES: Final = {
    # 480 x 832 pixels, 81 frames.
    "full": Scale(
        networks={
            "wan1_3b": Network(WanConfig(), 5),
            "wan14b": Network(WanConfig(heads=40, ffn_dim=13_824, layers=40), 3),
        },
        grid=(21, 30, 52),
        keys=512,
        copy_bytes=4 << 30,
        matrix=8192,
        cross=((12, 128), (40, 128)),
        engine={
            "small": WanConfig(heads=4, head_dim=64, ffn_dim=1024, layers=2, text_dim=64),
            "wan1_3b_2_blocks": WanConfig(layers=2),
        },
    ),
    "tiny": Scale(
        networks={
            "wan1_3b": Network(_SMALL, 3),
            "wan14b": Network(
                WanConfig(heads=3, head_dim=32, ffn_dim=128, layers=3, text_dim=16, freq_dim=16), 2
            ),
        },
        grid=(3, 4, 6),
        keys=12,
        copy_bytes=1 << 20,
        matrix=128,
        cross=((2, 32), (3, 64)),
        engine={"small": _SMALL},
    ),
}


def step_flops(config: WanConfig, tokens: int, keys: int, texts: int = 1) -> int:
    """Counts the floating-point operations of matrix products and attentions in one step.

    A multiply-add counts as 2. Excludes norms, activations, rotation, the embedding of the timestep (one
    row), and the keys and values of texts, which are computed once per request and not in a step.

    Args:
        keys: Tokens of each text.
        texts: Number of texts that cross-attention reads; 2 for contrast.
    """
    n, d = tokens, config.dim
    channels = (config.in_channels + config.out_channels) * config.patch_volume
    # Self-attention projects queries, keys, values and output; cross-attention projects queries and output.
    matrices = 2 * n * d * (6 * d + 2 * config.ffn_dim)
    attention = 4 * n * n * d + 4 * n * keys * d * texts
    return config.layers * (matrices + attention) + 2 * n * channels * d


def select_region(grid: Grid, share: float, device: torch.device) -> Tensor:
    """Selects the tokens nearest to the centre of every frame. Returns ascending indices, int64.

    Args:
        share: Share of all tokens to select, 0 to 1.
    """
    frames, rows, columns = grid
    y = torch.linspace(-1, 1, rows, device=device).view(1, rows, 1)
    x = torch.linspace(-1, 1, columns, device=device).view(1, 1, columns)
    distance = (y**2 + x**2).expand(frames, rows, columns).reshape(-1)
    count = max(1, round(share * len(distance)))
    return distance.argsort(stable=True)[:count].sort().values
