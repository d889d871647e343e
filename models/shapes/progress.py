"""Measures weights during training: `python -m models.shapes.progress --weights FILE --side 32 --sheet FILE`.

Generates videos of calibration prompts in unseen phrasings, with guidance, and prints the share that shows
each attribute, for one object and for two. Losses do not tell: where left puts an object changes them by a
thousandth. Smaller videos are enlarged before they are read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from models.shapes.locks import fine_schedule
from models.shapes.network import Network, decode, noise
from models.shapes.prompts import MAX_TOKENS, draw_prompts
from models.shapes.training import start_from
from models.shapes.world import SIDE, Scene, parse_scene
from models.shapes.yardstick.comparison import compare
from models.shapes.yardstick.reader import read
from services.denoiser.codec.mp4 import to_frames

SHOWN: Final = (0, 5, 10, 15)  # frames of a video on the sheet
_SEED: Final = 77
_BATCH: Final = 16
_COLUMNS: Final = 2  # videos per row of the sheet


def enlarge(videos: Tensor) -> Tensor:
    """Enlarges videos [B, 3, T, side, side] to [B, 3, T, SIDE, SIDE] by repeating pixels."""
    return F.interpolate(videos, size=(videos.shape[2], SIDE, SIDE), mode="nearest")


def summarise(right: Sequence[dict[str, bool]], wanted: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """Returns the share of videos that show each attribute that their prompts name, by number of objects.

    Args:
        right: Results of `compare`, one for each scene of `wanted`.
    """
    table: dict[str, dict[str, float]] = {}
    for count, name in ((1, "one object"), (2, "two objects")):
        rows = [r for r, scene in zip(right, wanted, strict=True) if len(scene.things) == count]
        if rows:
            table[name] = {key: round(sum(r[key] for r in rows) / len(rows), 3) for key in rows[0]}
    return table


def draw_sheet(videos: Sequence[Tensor]) -> Image.Image:
    """Draws frames of videos [3, T, SIDE, SIDE], two videos per row."""
    strips = [torch.from_numpy(to_frames(v)[list(SHOWN)]).transpose(0, 1).flatten(1, 2) for v in videos]
    strips += [torch.zeros_like(strips[0])] * (-len(strips) % _COLUMNS)
    rows = [torch.cat(strips[i : i + _COLUMNS], 1) for i in range(0, len(strips), _COLUMNS)]
    return Image.fromarray(torch.cat(rows).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="averaged weights")
    parser.add_argument("--side", type=int, choices=(32, 64), default=64, help="pixels per row of a video")
    parser.add_argument(
        "--count", type=int, default=96, help="number of prompts, half of them of two objects"
    )
    parser.add_argument("--guidance", type=float, default=2.0, help="scale of guidance; 1 for a student")
    parser.add_argument("--substeps", type=int, default=3, help="steps for each of the four; 1 for a student")
    parser.add_argument("--unseen-words", action="store_true", help="name every attribute by a held-out word")
    parser.add_argument("--sheet", type=Path, help="picture of the first 24 videos")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network = Network(args.side)
    start_from(network, args.weights)
    prompts = draw_prompts("calibration", args.count, _SEED, unseen_words=args.unseen_words)
    schedule, shown = fine_schedule(args.substeps), list[Tensor]()
    right, wanted = list[dict[str, bool]](), [parse_scene(row) for row in prompts.table]
    for rows in torch.split(torch.arange(args.count), _BATCH):
        start = noise(len(rows), torch.Generator().manual_seed(int(rows[0])), args.side)
        text, bias = prompts.text(rows, MAX_TOKENS)
        with torch.autocast("cpu", torch.bfloat16):
            *_, last = network.trajectory(start, text, bias, schedule, guidance=args.guidance)
        # Latents of smaller videos were scaled up in training.
        videos = enlarge(decode(last * (args.side / SIDE)))
        shown += videos
        right += [compare(read(v).scene, wanted[i]) for v, i in zip(videos, rows.tolist(), strict=True)]
    for name, shares in summarise(right, wanted).items():
        print(json.dumps({"prompts": name} | shares), flush=True)
    if args.sheet:
        draw_sheet(shown[:24]).save(args.sheet)


if __name__ == "__main__":
    main()
