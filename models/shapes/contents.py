"""What each token of a video shows: a second target of the teacher's training.

A linear head reads it from the hidden states half-way through the network, at every noise level. The pixels
alone teach a word slowly: where "left" puts an object shows only in the product of its place and its colour.
Asked which tokens the first object covers, and what it looks like there, the network learns to read places
and to keep two objects apart many times sooner. Aligning hidden states to what a video shows is known to
shorten the training of diffusion transformers (arXiv 2410.06940). The head is not used afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.shapes.layout import Layout
from models.shapes.network import PATCH, latent_grid
from models.shapes.render import cover_objects
from models.shapes.world import COLOURS, MAX_OBJECTS, MOTIONS, SHAPES, SIZES, objects_of

_VALUES: Final = tuple(len(table) for table in (SHAPES, COLOURS, MOTIONS, SIZES))


@dataclass(frozen=True)
class Contents:
    """What the tokens of B videos show.

    Attributes:
        cover: Share of each token in which each object is seen, [B, N, 2].
        values: Shape, colour, motion and size of the object that each token shows most of, int64 [B, N, 4].
    """

    cover: Tensor
    values: Tensor

    def select(self, index: Tensor) -> Contents:
        """Returns the contents of some tokens of each video, [B, n]."""
        picked = [x.gather(1, index[..., None].expand(-1, -1, x.shape[2])) for x in (self.cover, self.values)]
        return Contents(*picked)


def describe_tokens(table: Tensor, layout: Layout, side: int) -> Contents:
    """Computes what each token shows of rows of `scene_table` rendered at `side` x `side` pixels."""
    alone = cover_objects(table, layout, side)
    front = torch.stack([layout.front == i for i in range(MAX_OBJECTS)], 1)[..., None, None, None]
    seen = alone * torch.where(front, 1.0, 1 - alone.flip(1))
    t, h, w = latent_grid(side)
    grid = t // PATCH[0], h // PATCH[1], w // PATCH[2]
    cover = F.adaptive_avg_pool3d(seen, grid).flatten(2).mT  # [B, N, 2]
    shown = cover.argmax(2)[..., None].expand(-1, -1, len(_VALUES))
    return Contents(cover, objects_of(table)[..., : len(_VALUES)].gather(1, shown))


class ContentsHead(nn.Module):
    """Reads the contents of tokens from their hidden states."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, MAX_OBJECTS + sum(_VALUES))

    def forward(self, hidden: Tensor, contents: Contents) -> Tensor:
        """Returns the mean cross entropy of hidden states [B, N, D], in nats per token.

        The attributes count in the share in which an object is seen.
        """
        logits = self.out(self.norm(hidden)).float().flatten(0, 1)
        cover, *values = logits.split((MAX_OBJECTS, *_VALUES), dim=-1)
        value = F.binary_cross_entropy_with_logits(cover, contents.cover.flatten(0, 1))
        weight = contents.cover.amax(2).flatten()
        for some, wanted in zip(values, contents.values.flatten(0, 1).unbind(1), strict=True):
            entropy = F.cross_entropy(some, wanted.clamp_min(0), reduction="none")
            value = value + (weight * entropy).sum() / weight.sum().clamp_min(1) / len(_VALUES)
        return value
