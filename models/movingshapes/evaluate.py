"""Measures the model: `python -m models.movingshapes.evaluate --out bench/results/movingshapes.json`.

Samples scenes of the training combinations and of those held out, with phrasings drawn afresh and other
seeds than training's, through the same code that serves requests; reads the attributes back by image
analysis. `--sheet` also draws the first videos as a picture, one row of frames each.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bench.results import Figure, median, write
from models.movingshapes.readback import FIELDS, read_scene
from models.movingshapes.world import Scene, caption, held_out, scenes
from services.denoiser.models.pipeline import LoadedModel
from services.denoiser.sampler import sample
from services.denoiser.video import to_frames
from services.embedder.encoders import MiniLMEncoder

MODEL = Path(__file__).parent / "model.toml"
PHRASING_SEED = 90_000  # training draws its phrasings from small seeds


def generate(model: LoadedModel, states: Any, seed: int) -> Tensor:
    """The model's video [3, T, H, W] for token states [L, D], at its default size and schedule."""
    video = model.spec.video
    text = model.prepare_text(states)
    noise = model.noise(seed, model.latent_shape(video.frames, video.height, video.width))
    *_, last = sample(lambda x, s: model.velocity(x, s, text), noise, model.spec.schedule.sigmas)
    return model.decode(last.latents)


def share(hits: int, n: int) -> Figure:
    """A share with its Wilson interval."""
    p, z = hits / n, 1.96
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    return Figure(p, "share", n, (max(low, 0.0), min(high, 1.0)))


def contact_sheet(rows: list[tuple[str, Tensor]], scale: int = 2) -> Image.Image:
    """Captions above the frames of their videos, one row each."""
    strips = [np.concatenate(list(to_frames(v, scale)), axis=1) for _, v in rows]
    height, width = strips[0].shape[0], strips[0].shape[1]
    sheet = Image.new("RGB", (width, len(rows) * (height + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, ((text, _), strip) in enumerate(zip(rows, strips, strict=True)):
        top = i * (height + 16)
        draw.text((4, top + 2), text, fill="black")
        sheet.paste(Image.fromarray(strip), (0, top + 16))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="result file to write")
    parser.add_argument("--sheet", type=Path, help="PNG to write")
    parser.add_argument("--count", type=int, default=250, help="videos of each split")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, encoder = LoadedModel.load(MODEL), MiniLMEncoder()
    if encoder.id != model.spec.text.encoder_id:
        raise SystemExit(
            f"the model was trained with {model.spec.text.encoder_id}, installed is {encoder.id}"
        )
    rng = random.Random(PHRASING_SEED)
    figures: dict[str, Figure] = {}
    pictures: list[tuple[str, Tensor]] = []
    seconds = []
    for split, wanted in (("training", False), ("held_out", True)):
        pool = [s for s in scenes() if held_out(s) is wanted]
        chosen: list[Scene] = rng.choices(pool, k=args.count)
        texts = [caption(s, rng) for s in chosen]
        hits = dict.fromkeys((*FIELDS, "all"), 0)
        for i, (scene, encoding) in enumerate(zip(chosen, encoder.encode(texts), strict=True)):
            start = time.perf_counter()
            video = generate(model, encoding.states, seed=PHRASING_SEED + i)
            seconds.append(time.perf_counter() - start)
            shown = read_scene(video)
            for f in FIELDS:
                hits[f] += getattr(shown, f) == getattr(scene, f)
            hits["all"] += shown == scene
            if i < 10:
                pictures.append((f"{split}: {texts[i]}", video))
        for f, n in hits.items():
            figures[f"{split}_{f}"] = share(n, args.count)
            print(f"{split:9} {f:11} {n / args.count:6.1%}", flush=True)
    figures["seconds_per_video_p50"] = median(seconds, "s")
    if args.sheet:
        contact_sheet(pictures).save(args.sheet)
    if args.out:
        write(args.out, " ".join(["python -m models.movingshapes.evaluate", *sys.argv[1:]]), figures)


if __name__ == "__main__":
    main()
