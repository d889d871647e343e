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
from models.shapes.render import unit_rgb
from models.shapes.world import (
    COLOURS,
    MAX_OBJECTS,
    MOTIONS,
    PLACES,
    SHADES,
    SHAPES,
    SIDE,
    SIZES,
    TEXTURES,
    objects_of,
)

WEIGHTS: Final = Path(__file__).parents[1] / "weights" / "yardstick.safetensors"
SHA256: Final = "2f703134cbb2856746a3006c2bf600290c93f43aee68f806ca229c2caafb9780"
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
SEEN: Final = (0, 5, 10, 15)  # frames that the classifier sees
PLANES: Final = 6  # colours of a video that it sees, those with most pixels
_SOFTNESS: Final = 0.08  # squared distance of colours, in [-1, 1] RGB, over which membership falls
_OFF_PALETTE: Final = 0.02  # added to the sum of memberships: colours far from the world's have none
_CHANNELS: Final = (16, 32, 64)
# Labels of a plane: numbers of objects of its colour with each value of the other attributes.
PLANE_FIELDS: Final = ("shape", "motion", "size", "place")
PLANE_OUTPUTS: Final = sum(OBJECT_SIZES[f] for f in PLANE_FIELDS)
_SPATIAL: Final = 8  # channels of the 4 x 4 map from which places are read
_HIDDEN: Final = 96
_BATCH: Final = 32
_RIDGE: Final = 1e-6  # added to covariances, over their mean variance


def split_colours(videos: Tensor) -> Tensor:
    """Computes each pixel's membership in the world's colours, [B, len(COLOURS) + 1, frames, H, W], in 0..1.

    The last plane is that of the shades, the second tones of textures.
    """
    palette = torch.cat([unit_rgb(COLOURS), unit_rgb(SHADES)])  # [n, 3]
    norm = palette.square().sum(1, keepdim=True)
    planes = torch.empty(len(videos), len(COLOURS) + 1, *videos.shape[2:])
    for video, plane in zip(videos, planes, strict=True):  # one by one, so that the distances fit the cache
        pixels = video.flatten(1)  # [3, P]
        near = torch.addmm(norm + pixels.square().sum(0), palette, pixels, alpha=-2).div_(-_SOFTNESS).exp_()
        near /= near.sum(0) + _OFF_PALETTE
        plane[:-1] = near[: len(COLOURS)].view_as(plane[:-1])
        plane[-1] = near[len(COLOURS) :].sum(0).view_as(plane[-1])
    return planes


class Classifier(nn.Module):
    """Convolutions over the planes of a video's colours, from [B, 3, FRAMES, SIDE, SIDE] to labels.

    The same weights see each plane, so shapes and motions of all colours are learned together.
    """

    def __init__(self) -> None:
        super().__init__()
        a, b, c = _CHANNELS
        self.body = nn.Sequential(
            nn.Conv2d(len(SEEN), a, 5, stride=2, padding=2),  # [B, a, 32, 32]
            nn.GELU(),
            nn.Conv2d(a, b, 3, stride=2, padding=1),  # [B, b, 16, 16]
            nn.GELU(),
            nn.Conv2d(b, c, 3, padding=1),
            nn.GELU(),
            nn.MaxPool2d(2),  # [B, c, 8, 8]
            nn.Conv2d(c, c, 3, padding=1),
            nn.GELU(),
        )
        self.spatial = nn.Conv2d(c, _SPATIAL, 1)
        self.colour = nn.Embedding(len(COLOURS) + 1, _HIDDEN)
        self.plane = nn.Sequential(
            nn.LayerNorm(2 * c + 16 * _SPATIAL), nn.Linear(2 * c + 16 * _SPATIAL, _HIDDEN)
        )
        self.mixed = nn.Sequential(nn.GELU(), nn.Linear(_HIDDEN, _HIDDEN), nn.GELU())
        self.features = nn.Linear(_HIDDEN, FEATURES)
        outputs = sum(SCENE_SIZES.values()) + (1 + MAX_OBJECTS) * sum(OBJECT_SIZES.values())
        self.head = nn.Sequential(
            nn.GELU(), nn.Linear(FEATURES, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, outputs)
        )
        self.plane_head = nn.Linear(_HIDDEN, (1 + MAX_OBJECTS) * PLANE_OUTPUTS)  # for training only

    def planes(self, videos: Tensor) -> tuple[Tensor, Tensor]:
        """Returns hidden states of planes [B, PLANES, _HIDDEN], and their indices [B, PLANES]."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            shares = split_colours(videos[:, :, list(SEEN)])
            index = shares.sum((2, 3, 4)).topk(PLANES, dim=1).indices
            chosen = shares[torch.arange(len(videos))[:, None], index]  # [B, PLANES, T, H, W]
        x = self.body(chosen.flatten(0, 1))
        spatial = F.avg_pool2d(self.spatial(x), 2).flatten(1)
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3)), spatial], 1)
        return self.plane(pooled).view(*index.shape, _HIDDEN) + self.colour(index), index

    def embed(self, videos: Tensor) -> Tensor:
        """Computes the features [B, FEATURES] of videos."""
        return self._mix(self.planes(videos)[0])

    def _mix(self, hidden: Tensor) -> Tensor:
        features: Tensor = self.features(self.mixed(hidden).sum(1))
        return features

    def predict_planes(self, videos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes features [B, FEATURES], logits of planes [B, PLANES, PLANE_OUTPUTS, 1 + MAX_OBJECTS], and
        the planes' indices [B, PLANES]."""
        hidden, index = self.planes(videos)
        logits = self.plane_head(F.gelu(hidden)).view(*index.shape, PLANE_OUTPUTS, 1 + MAX_OBJECTS)
        return self._mix(hidden), logits, index

    def forward(self, videos: Tensor) -> dict[str, Tensor]:
        """Computes logits: [B, values] of attributes of the video, [B, values, 1 + MAX_OBJECTS] of objects.

        Objects have no order, so the classifier predicts how many objects have each value.
        """
        return self.predict(self.embed(videos))

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        """Computes the logits from features."""
        out: Tensor = self.head(features)
        sizes = [*SCENE_SIZES.values(), *((1 + MAX_OBJECTS) * n for n in OBJECT_SIZES.values())]
        parts = dict(zip((*SCENE_SIZES, *OBJECT_SIZES), torch.split(out, sizes, 1), strict=True))
        return {k: v.view(len(v), OBJECT_SIZES[k], -1) if k in OBJECT_SIZES else v for k, v in parts.items()}


def label_objects(table: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Returns each object's value of each attribute as [B, MAX_OBJECTS, values]; 0 without an object."""
    things = objects_of(table)
    exists = things[..., 0] >= 0  # [B, MAX_OBJECTS]
    halves = torch.tensor(list(PLACES.values()))
    where = torch.where(layout.middle > SIDE / 2, 1, -1)  # [B, MAX_OBJECTS, 2]
    place = (where[:, :, None] == halves).all(-1).long().argmax(-1)
    columns = {"shape": things[..., 0], "colour": things[..., 1], "motion": things[..., 2],
               "size": things[..., 3], "place": place}  # fmt: skip
    return {k: F.one_hot(v.clamp_min(0), OBJECT_SIZES[k]) * exists[..., None] for k, v in columns.items()}


def label_videos(table: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Returns labels of renders: indices [B] for the video's attributes, counts [B, values] for objects'."""
    counts = {k: v.sum(1) for k, v in label_objects(table, layout).items()}
    count = counts["shape"].sum(1) - 1
    return {"background": table[:, 0], "texture": table[:, 1], "count": count, **counts}


def label_planes(table: Tensor, layout: Layout) -> Tensor:
    """Returns the labels of planes, [B, len(COLOURS) + 1, PLANE_OUTPUTS]."""
    labels = label_objects(table, layout)
    others = torch.cat([labels[f] for f in PLANE_FIELDS], -1)  # [B, MAX_OBJECTS, PLANE_OUTPUTS]
    colour = F.pad(labels["colour"], (0, 1))  # no object has the shades' plane
    return torch.einsum("boc,bof->bcf", colour, others)


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


def frechet_distance(rendered: Tensor, other: Tensor) -> float:
    """Computes the Fréchet distance of features [n, d] of videos to those of rendered ones.

    Features are whitened with the covariance of the rendered videos, so that a fault that hardly changes
    them, but never occurs in renders, counts as much as a change of colours. The distance is divided by d.
    Finite sets of one distribution have a distance above 0, about proportional to 1 / n: compare distances of
    equal n only, and report that of two sets of renders with them.
    """
    rendered, other = rendered.double(), other.double()
    mean = rendered.mean(0)
    values, axes = torch.linalg.eigh(torch.cov(rendered.T))
    whiten = axes / (values + _RIDGE * values.mean()).clamp_min(1e-12).sqrt()
    offset = (other - mean) @ whiten
    spread = torch.linalg.eigvalsh(torch.cov(offset.T)).clamp_min(0)
    # The rendered covariance is now the identity, with which every matrix commutes.
    return float((offset.mean(0).square().sum() + (spread.sqrt() - 1).square().sum()) / len(mean))
