"""Measures at which level each part of a video is settled: `python -m models.shapes.locks --weights FILE`.

A run of one prompt is continued with another, unrelated prompt from each level of the 4-step schedule. What
still becomes the new prompt's is not settled at that level; what stays the donor's is. Scenes have one
object, so that every attribute has two values to compare. The noise scale of the latents is right if layout
is settled between the first and the third level.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from models.shapes.captions import caption
from models.shapes.network import FEW_STEPS, Network, decode, noise, subdivide
from models.shapes.prompts import MAX_TOKENS, encode_prompts
from models.shapes.training import start_from
from models.shapes.world import Scene, draw_scenes
from models.shapes.yardstick.reader import Reading, read

FIELDS = ("background", "texture", "shape", "colour", "motion", "size")
_NEAR = 4.0  # pixels between two places that count as the same


def attributes(scene: Scene) -> dict[str, str | None]:
    """Returns the attributes of a scene and of its first object; None without an object."""
    thing = scene.things[0] if scene.things else None
    return {f: getattr(scene, f, None) or getattr(thing, f, None) for f in FIELDS}


def settled_shares(
    readings: Sequence[tuple[Reading, Reading]], donors: Sequence[Scene], targets: Sequence[Scene]
) -> dict[str, float]:
    """Computes for each attribute the share of videos that show the donor's value, where the prompts differ,
    and for the place the share whose object is where the donor's is.

    Args:
        readings: Donor's video and continued video of each pair.
    """
    shares = {}
    for field in FIELDS:
        kept = [
            attributes(shown.scene)[field] == attributes(donor)[field]
            for (_, shown), donor, target in zip(readings, donors, targets, strict=True)
            if attributes(donor)[field] != attributes(target)[field]
        ]
        shares[field] = sum(kept) / max(1, len(kept))
    near = [
        float((a.objects.path[0, :2] - b.objects.path[0, :2]).norm()) < _NEAR
        for a, b in readings
        if len(a.objects) and len(b.objects)
    ]
    return shares | {"place": sum(near) / max(1, len(near))}


def fine_schedule(substeps: int) -> tuple[float, ...]:
    """Returns the 4-step schedule with each step divided into `substeps`."""
    inner = [s for a, b in pairwise(FEW_STEPS) for s in subdivide(a, b, substeps)[:-1]]
    return (*inner, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="averaged weights")
    parser.add_argument("--substeps", type=int, default=6, help="steps for each of the four; 1 for a student")
    parser.add_argument("--count", type=int, default=64, help="number of pairs")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network, rng = Network(), random.Random(0)
    start_from(network, args.weights)
    donors, targets = (draw_scenes("calibration", args.count, seed, pairs=0.0) for seed in (1, 2))
    encoded = [encode_prompts(s, [caption(x, rng, "unseen") for x in s]) for s in (donors, targets)]
    schedule, n = fine_schedule(args.substeps), args.substeps
    readings: dict[int, list[tuple[Reading, Reading]]] = {level: [] for level in (1, 2, 3)}
    for rows in torch.split(torch.arange(args.count), 16):
        (own, own_bias), (text, bias) = (p.text(rows, MAX_TOKENS) for p in encoded)
        start = noise(len(rows), torch.Generator().manual_seed(int(rows[0])))
        path: list[Tensor] = list(network.trajectory(start, own, own_bias, schedule))
        first = [read(v) for v in decode(path[-1])]
        for level, found in readings.items():
            *_, last = network.trajectory(path[level * n - 1], text, bias, schedule, level * n)
            found += zip(first, [read(v) for v in decode(last)], strict=True)
    for level, found in readings.items():
        shares = settled_shares(found, donors, targets)
        print(f"K1 = {level}: " + ", ".join(f"{k} {v:.2f}" for k, v in shares.items()), flush=True)


if __name__ == "__main__":
    main()
