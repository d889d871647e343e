"""Trains the yardstick's classifier on rendered videos: `python -m models.shapes.yardstick.train_classifier`.

It sees renders of the split `train` with light normal noise, as a codec leaves it; no blurred, no compressed
and no generated video. Writes the weights in float16, and prints their digest, which belongs into
`classifier.py`, and the accuracy on renders of the split `calibration`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from models.shapes.layout import Layout, draw_layout
from models.shapes.render import render
from models.shapes.world import FRAMES, SIDE, Split, draw_scenes, scene_table
from models.shapes.yardstick.classifier import (
    OBJECT_SIZES,
    SEEN,
    WEIGHTS,
    Classifier,
    label_planes,
    label_videos,
)

SCENES: Final = 20_000  # scenes that batches are drawn from, each time with a new layout
MAX_NOISE: Final = 0.04  # largest standard deviation of the noise, in [-1, 1]
PLANE_WEIGHT: Final = 40.0  # of the planes' mean cross entropy; most planes have no object
WARM_UP: Final = 100  # updates
HELD_OUT: Final = 1_000  # videos of the final accuracy
EMA: Final = 0.995  # decay of the averaged weights


def draw_videos(table: Tensor, generator: torch.Generator) -> tuple[Tensor, Layout]:
    """Renders rows of `scene_table` with new layouts."""
    layout = draw_layout(table, generator)
    return render(table, layout), layout


def compute_loss(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
    """Returns the sum of the cross entropies of all attributes."""
    losses = []
    for name, label in labels.items():
        if name in OBJECT_SIZES:
            losses.append(F.cross_entropy(logits[name].flatten(0, 1), label.flatten()) * label.shape[1] / 2)
        else:
            losses.append(F.cross_entropy(logits[name], label))
    return torch.stack(losses).sum()


@torch.no_grad()
def measure_accuracy(classifier: Classifier, split: Split, count: int, seed: int) -> dict[str, float]:
    """Returns the share of renders whose attribute is right, for every object."""
    table = scene_table(draw_scenes(split, count, seed))
    generator = torch.Generator().manual_seed(seed)
    hits: dict[str, int] = {}
    for rows in torch.split(table, 50):
        videos, layout = draw_videos(rows, generator)
        logits = classifier(videos)
        for name, label in label_videos(rows, layout).items():
            right = logits[name].argmax(-1) == label
            hits[name] = hits.get(name, 0) + int((right.all(1) if right.ndim == 2 else right).sum())
    return {name: n / count for name, n in hits.items()}


def train(updates: int, batch: int, rate: float, seed: int) -> Classifier:
    """Trains a classifier. Returns averaged weights."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    table = scene_table(draw_scenes("train", SCENES, seed))
    classifier, averaged = Classifier(), Classifier()
    averaged.load_state_dict(classifier.state_dict())
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=rate, weight_decay=0.02)
    start, kept = time.monotonic(), []
    for update in range(updates):
        left = 1 - update / updates
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (update + 1) / WARM_UP, 0.02 + 1.6 * left)
        rows = table[torch.randint(len(table), (batch,), generator=generator)]
        videos, layout = draw_videos(rows, generator)
        videos = videos[:, :, list(SEEN)]
        noise = MAX_NOISE * torch.rand(batch, 1, 1, 1, 1, generator=generator)
        seen = torch.zeros(batch, 3, FRAMES, SIDE, SIDE)
        seen[:, :, list(SEEN)] = videos + noise * torch.randn(videos.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            features, planes, index = classifier.predict_planes(seen)
            logits = classifier.predict(features)
        loss = compute_loss({k: v.float() for k, v in logits.items()}, label_videos(rows, layout))
        plane_labels = label_planes(rows, layout)[torch.arange(batch)[:, None], index]
        loss = loss + PLANE_WEIGHT * F.cross_entropy(planes.float().flatten(0, 2), plane_labels.flatten())
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimiser.step()
        decay = min(EMA, (1 + update) / (10 + update))
        with torch.no_grad():
            for p, q in zip(averaged.parameters(), classifier.parameters(), strict=True):
                p.lerp_(q, 1 - decay)
        kept.append(float(loss.detach()))
        if (update + 1) % 50 == 0:
            seconds = round(time.monotonic() - start, 1)
            row = {"update": update + 1, "seconds": seconds, "loss": round(sum(kept) / len(kept), 4)}
            print(json.dumps(row), flush=True)
            kept = []
    return averaged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file to write")
    parser.add_argument("--updates", type=int, default=3000, help="number of updates")
    parser.add_argument("--batch", type=int, default=32, help="videos per update")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and videos")
    args = parser.parse_args()
    torch.set_num_threads(1)
    classifier = train(args.updates, args.batch, args.lr, args.seed)
    state = {k: v.half().contiguous() for k, v in classifier.state_dict().items()}
    classifier.load_state_dict({k: v.float() for k, v in state.items()})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, args.out)
    digest = hashlib.sha256(args.out.read_bytes()).hexdigest()
    accuracy = measure_accuracy(classifier, "calibration", HELD_OUT, args.seed + 1)
    print(json.dumps({"sha256": digest, "bytes": args.out.stat().st_size, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
