"""A small classifier of rendered videos, and the Fréchet distance of two sets of videos in its features.

It is trained on renders only (`train_classifier`), so no model's videos can make it tolerant of their faults.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from models.shapes.layout import Layout
from models.shapes.world import (
    COLOURS,
    FRAMES,
    MAX_OBJECTS,
    MOTIONS,
    PLACES,
    SHAPES,
    SIDE,
    SIZES,
    TEXTURES,
    objects_of,
)

WEIGHTS: Final = Path(__file__).parents[1] / "weights" / "yardstick.safetensors"
SHA256: Final = ""
FEATURES: Final = 48  # fewer than a tenth of the 500 videos whose covariance is estimated
# Attributes of a video, and those of objects, with the numbers of their values.
SCENE_SIZES: Final = {"background": len(COLOURS), "texture": len(TEXTURES), "count": MAX_OBJECTS}
OBJECT_SIZES: Final = {
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "motion": len(MOTIONS),
    "size": len(SIZES),
    "place": len(PLACES),
}
_CHANNELS: Final = (32, 64, 96, 128)
_SPATIAL: Final = 16  # channels of the 4 x 4 map from which places are read
_BATCH: Final = 32
_RIDGE: Final = 1e-6  # added to covariances, over their mean variance


class Classifier(nn.Module):
    """Convolutions over all frames at once, from [B, 3, FRAMES, SIDE, SIDE] to FEATURES and their labels."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = _CHANNELS
        self.body = nn.Sequential(
            nn.Conv2d(3 * FRAMES, a, 5, stride=2, padding=2),  # [B, a, 32, 32]
            nn.GELU(),
            nn.Conv2d(a, b, 3, stride=1, padding=1),
            nn.GELU(),
            nn.MaxPool2d(2),  # [B, b, 16, 16]
            nn.Conv2d(b, c, 3, padding=1),
            nn.GELU(),
            nn.MaxPool2d(2),  # [B, c, 8, 8]
            nn.Conv2d(c, d, 3, padding=1),
            nn.GELU(),
        )
        self.spatial = nn.Conv2d(d, _SPATIAL, 1)
        self.norm = nn.LayerNorm(2 * d + 16 * _SPATIAL)
        self.features = nn.Linear(2 * d + 16 * _SPATIAL, FEATURES)
        outputs = sum(SCENE_SIZES.values()) + (1 + MAX_OBJECTS) * sum(OBJECT_SIZES.values())
        self.head = nn.Sequential(nn.GELU(), nn.Linear(FEATURES, outputs))

    def embed(self, videos: Tensor) -> Tensor:
        """Computes the features [B, FEATURES] of videos."""
        x = self.body(videos.flatten(1, 2))
        spatial = F.avg_pool2d(self.spatial(x), 2).flatten(1)
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3)), spatial], 1)
        return self.features(self.norm(pooled))  # type: ignore[no-any-return]

    def forward(self, videos: Tensor) -> dict[str, Tensor]:
        """Computes logits: [B, values] of attributes of the video, [B, values, 1 + MAX_OBJECTS] of objects.

        Objects have no order, so the classifier predicts how many objects have each value.
        """
        out: Tensor = self.head(self.embed(videos))
        sizes = [*SCENE_SIZES.values(), *((1 + MAX_OBJECTS) * n for n in OBJECT_SIZES.values())]
        parts = dict(zip((*SCENE_SIZES, *OBJECT_SIZES), torch.split(out, sizes, 1), strict=True))
        return {k: v.view(len(v), OBJECT_SIZES[k], -1) if k in OBJECT_SIZES else v for k, v in parts.items()}


def label_videos(table: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Returns labels of renders: indices [B] for the video's attributes, counts [B, values] for objects'."""
    things = objects_of(table)
    exists = things[..., 0] >= 0  # [B, MAX_OBJECTS]
    halves = torch.tensor(list(PLACES.values()))
    where = torch.where(layout.middle > SIDE / 2, 1, -1)  # [B, MAX_OBJECTS, 2]
    place = (where[:, :, None] == halves).all(-1).long().argmax(-1)
    columns = {"shape": things[..., 0], "colour": things[..., 1], "motion": things[..., 2],
               "size": things[..., 3], "place": place}  # fmt: skip
    counts = {
        k: (F.one_hot(v.clamp_min(0), OBJECT_SIZES[k]) * exists[..., None]).sum(1) for k, v in columns.items()
    }
    return {"background": table[:, 0], "texture": table[:, 1], "count": exists.sum(1) - 1, **counts}


@cache
def load_classifier() -> Classifier:
    """Loads the shipped weights. Raises ValueError if they are not those of this version."""
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"{WEIGHTS}: sha256 {digest}, expected {SHA256}; restore the file from the repository"
        )
    classifier = Classifier()
    classifier.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items()})
    return classifier.eval()


@torch.no_grad()
def embed_videos(videos: Tensor | Sequence[Tensor], classifier: Classifier | None = None) -> Tensor:
    """Computes the features [n, FEATURES] of videos [n, 3, FRAMES, SIDE, SIDE]."""
    classifier = classifier or load_classifier()
    parts = []
    for begin in range(0, len(videos), _BATCH):
        batch = torch.stack(list(videos[begin : begin + _BATCH])).float().clamp(-1, 1)
        parts.append(classifier.embed(batch))
    return torch.cat(parts)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Computes the Fréchet distance of two sets of features [n, d], in units of the first set's variance.

    Features are scaled so that the first set, which should be that of rendered videos, has a mean variance
    of 1 per dimension, and the distance is divided by d. Finite sets of one distribution have a distance
    above 0, about proportional to 1 / n: compare distances of equal n only, and report that of two sets of
    renders with them.
    """
    first, second = first.double(), second.double()
    scale = first.var(0).mean().clamp_min(1e-12).sqrt()
    first, second = first / scale, second / scale
    a, b = (torch.cov(x.T) + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype) for x in (first, second))
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp_min(0).sqrt().sum()
    gap = (first.mean(0) - second.mean(0)).square().sum()
    return float((gap + a.trace() + b.trace() - 2 * cross).clamp_min(0)) / first.shape[1]
