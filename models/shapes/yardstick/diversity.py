"""Measures how much the videos of one prompt differ over seeds in what the prompt leaves open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from models.shapes.layout import draw_layout
from models.shapes.render import render
from models.shapes.world import Scene, scene_table
from models.shapes.yardstick.comparison import match
from models.shapes.yardstick.reader import Reading, read

DIVERSITY_FIELDS: Final = ("place", "heading", "texture", "pixels")


def render_readings(scene: Scene, count: int, seed: int) -> list[Reading]:
    """Renders a scene with `count` layouts and reads the videos, for comparison."""
    table = scene_table([scene] * count)
    videos = render(table, draw_layout(table, torch.Generator().manual_seed(seed)))
    return [read(v) for v in videos]


def measure_variances(readings: Sequence[Reading], scene: Scene) -> dict[str, float]:
    """Computes the variances over the videos of one prompt.

    Returns:
        Variance of the `place` of objects in square pixels, of the `heading` (1 minus the length of the mean
        direction), of the background's `texture` (share of the second tone), and of the `pixels`; NaN where
        a scene has none, or too few videos show the object.
    """
    places: list[list[Tensor]] = [[] for _ in scene.things]
    for reading in readings:
        _, matched = match(reading.scene.things, scene.things)
        for number, i in enumerate(matched):
            places[number].append(reading.objects.path[reading.order[i]])
    paths = [torch.stack(p) for p in places if len(p) >= 2]
    moving = [
        torch.stack(p)
        for p, thing in zip(places, scene.things, strict=True)
        if thing.motion != "still" and len(p) >= 2
    ]
    directions = [m[:, 2:] / m[:, 2:].norm(dim=1, keepdim=True).clamp_min(1e-6) for m in moving]
    shares = torch.stack([r.background.share for r in readings])
    videos = torch.stack([r.video for r in readings])
    return {
        "place": _mean([float(p[:, :2].var(0).mean()) for p in paths]),
        "heading": _mean([1 - float(d.mean(0).norm()) for d in directions]),
        "texture": math.nan if scene.texture == "plain" else float(shares.var(0).mean()),
        "pixels": float(videos.var(0).mean()),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def diversity_ratios(
    generated: Sequence[dict[str, float]], rendered: Sequence[dict[str, float]]
) -> dict[str, float]:
    """Computes the spread of generated videos over that of rendered ones; 1 is as diverse as the world.

    Args:
        generated: Results of `measure_variances` for n prompts.
        rendered: The same for renders of the same scenes with as many layouts.

    Returns:
        Ratio of standard deviations for each of DIVERSITY_FIELDS, over the prompts that have both; and the
        `mean` of them.
    """
    ratios = {}
    for field in DIVERSITY_FIELDS:
        pairs = [(g[field], r[field]) for g, r in zip(generated, rendered, strict=True)]
        pairs = [p for p in pairs if not math.isnan(p[0]) and not math.isnan(p[1])]
        below = sum(r for _, r in pairs)
        ratios[field] = math.sqrt(sum(g for g, _ in pairs) / below) if below > 0 else math.nan
    present = [v for v in ratios.values() if not math.isnan(v)]
    return ratios | {"mean": _mean(present)}
