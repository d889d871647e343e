"""Quality of videos of the shipped model's world: artefacts, sharpness, layout, features, spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.pixels import Video
from models.shapes.layout import draw_layout
from models.shapes.render import render
from models.shapes.world import FRAMES, SIDE, Scene, scene_table
from models.shapes.yardstick.classifier import embed_videos
from models.shapes.yardstick.corrupt import pass_codec
from models.shapes.yardstick.diversity import measure_variances
from models.shapes.yardstick.kept import compare_layouts
from models.shapes.yardstick.reader import Reading, read
from models.shapes.yardstick.residue import compute_residue, donor_share, measure_artefacts
from models.shapes.yardstick.sharpness import measure_sharpness

SCENE_SHAPE = (FRAMES, SIDE, SIDE)


@dataclass(frozen=True)
class Quality:
    """Measures of one video. The functions of `models.shapes.yardstick` define them.

    Attributes:
        artefact: Whether the video has a visible artefact.
        artefact_share: Share of pixels that are part of an artefact.
        residue: Mean distance to the best-fitting render, over the full range of values.
        donor_share: Share of the residue's energy that a faint copy of the donor's video explains.
        rims, texture: Sharpness at the rims of objects and at the edges of the background's texture, 1 for
            rendered videos; None if there are none.
        layout: Part of the layout → whether it is the donor's where the prompt did not change; `all`.
        features: Features of the classifier, from which distances between sets of videos are computed.
    """

    artefact: bool
    artefact_share: float
    residue: float
    donor_share: float
    rims: float | None
    texture: float | None
    layout: dict[str, bool]
    features: tuple[float, ...]


def read_video(video: Video) -> Reading | None:
    """Reads a video of float32 [T, H, W, 3] in 0..255; None if it does not have the world's shape."""
    if video.shape[:3] != SCENE_SHAPE:
        return None
    return read(torch.from_numpy(video / 127.5 - 1).permute(3, 0, 1, 2))


def inspect(reading: Reading, target: Scene, donor: Reading, donor_scene: Scene) -> Quality:
    """Measures the video of a target whose prompt resembles a donor's."""
    artefacts, sharpness = measure_artefacts(reading, len(target.things)), measure_sharpness(reading)
    return Quality(
        artefact=artefacts.found,
        artefact_share=artefacts.share,
        residue=artefacts.distance,
        donor_share=donor_share(compute_residue(reading), donor.video, reading.best_fit),
        rims=_drop_nan(sharpness["rims"]),
        texture=_drop_nan(sharpness["texture"]),
        layout=compare_layouts(donor, reading, donor_scene, target),
        features=embed([reading.video])[0],
    )


def embed(videos: Sequence[Tensor]) -> list[tuple[float, ...]]:
    """Computes the classifier's features of videos [3, T, H, W], rounded for storage."""
    rows: list[list[float]] = embed_videos(videos).tolist()
    return [tuple(round(value, 5) for value in row) for row in rows]


def embed_renders(scene: Scene, seeds: Sequence[int]) -> list[tuple[float, ...]]:
    """Computes the features of renders of a scene with layouts drawn from seeds, encoded as mp4."""
    return embed([pass_codec(render_scene(scene, seed)) for seed in seeds])


def render_scene(scene: Scene, seed: int) -> Tensor:
    """Renders a scene with a layout drawn from a seed, [3, T, H, W]."""
    table = scene_table([scene])
    return render(table, draw_layout(table, torch.Generator().manual_seed(seed)))[0]


def measure_spread(readings: Sequence[Reading], scene: Scene) -> dict[str, float | None]:
    """Computes the variances over videos of one prompt; None for what the scene does not have."""
    variances: Mapping[str, float] = measure_variances(readings, scene)
    return {name: _drop_nan(value) for name, value in variances.items()}


def _drop_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
