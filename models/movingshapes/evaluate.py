"""Does the model show what prompts ask for? Videos from scenes of a split, judged by image analysis.

`python -m models.movingshapes.evaluate --split calibration` prints a table; `--sheet` also draws the first
videos. The committed figures come from `python -m bench.model`, on `test`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from models.movingshapes.analyzer import FIELDS, compare, read_scene
from models.movingshapes.captions import Phrasing
from models.movingshapes.data import Captions, draw_scenes, encode_captions, write_captions
from models.movingshapes.world import Scene, Split, parse_scene
from services.denoiser.codec.mp4 import to_frames
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.sampler import sample

STUDENT: Final = Path(__file__).with_name("model.toml")
TEACHER: Final = Path(__file__).with_name("teacher.toml")
FIRST_SEED: Final = 90_000  # of videos and phrasings; training draws from small seeds


@dataclass(frozen=True)
class Verdict:
    """What became of one prompt: the fields of `analyzer.compare`, and what the prompt asked for."""

    prompt: str
    scene: Scene
    right: dict[str, bool]

    @property
    def single(self) -> bool:
        return len(self.scene.things) == 1


def load_prompts(split: Split, count: int, phrasing: Phrasing, unseen_words: bool = False) -> Captions:
    """Prompts of a split, half of them with two objects, in phrasings drawn afresh."""
    scenes = draw_scenes(split, count, FIRST_SEED)
    return encode_captions(scenes, write_captions(scenes, FIRST_SEED, phrasing, unseen_words))


def generate(model: LoadedModel, states: Any, seed: int) -> Tensor:
    """The model's video [3, T, H, W] for token states [L, D], at its default size and schedule."""
    video = model.spec.video
    text = model.prepare_text(states)
    noise = model.noise(seed, model.latent_shape(video.frames, video.height, video.width))
    predictor, sigmas = Predictor.eager(model), model.spec.schedule.sigmas
    *_, clean = sample(lambda x, s: predictor.latent_velocity(x, s, text), noise, sigmas)
    return model.decode(clean)


def videos(model: LoadedModel, captions: Captions) -> Iterable[tuple[str, Scene, Tensor]]:
    """Prompt, scene and video of every caption, each from a seed of its own."""
    for i, text in enumerate(captions.texts):
        states = captions.states[i][captions.mask[i]].float()
        yield text, parse_scene(captions.table[i]), generate(model, states, FIRST_SEED + i)


def judge(model: LoadedModel, captions: Captions) -> list[Verdict]:
    """A verdict for every caption."""
    made = videos(model, captions)
    return [Verdict(text, scene, compare(read_scene(video), scene)) for text, scene, video in made]


def hits(verdicts: Sequence[Verdict], field: str) -> int:
    return sum(v.right[field] for v in verdicts)


def contact_sheet(rows: Sequence[tuple[str, Tensor]], scale: int = 2, every: int = 2) -> Image.Image:
    """Captions above every second frame of their videos, one row each."""
    strips = [np.concatenate(list(to_frames(v[:, ::every], scale)), axis=1) for _, v in rows]
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
    parser.add_argument("--model", type=Path, default=STUDENT)
    parser.add_argument("--split", choices=("train", "calibration", "test"), default="calibration")
    parser.add_argument("--phrasing", choices=("seen", "unseen"), default="unseen")
    parser.add_argument("--unseen-words", action="store_true")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sheet", type=Path, help="PNG of the first videos")
    parser.add_argument("--wrong", action="store_true", help="print the prompts that were not met")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = LoadedModel.load(args.model)
    captions = load_prompts(args.split, args.count, args.phrasing, args.unseen_words)
    if args.sheet:
        few = Captions(captions.texts[:12], captions.table[:12], captions.states[:12], captions.mask[:12])
        contact_sheet([(text, video) for text, _, video in videos(model, few)]).save(args.sheet)
    verdicts = judge(model, captions)
    for name, part in (
        ("one object", [v for v in verdicts if v.single]),
        ("two objects", [v for v in verdicts if not v.single]),
    ):
        shares = "  ".join(f"{f} {hits(part, f) / len(part):.1%}" for f in (*FIELDS, "all"))
        print(f"{name:11} n = {len(part)}  {shares}")
    if args.wrong:
        for v in verdicts:
            if not v.right["all"]:
                print(v.prompt, "| wrong:", *(f for f in FIELDS if not v.right[f]))


if __name__ == "__main__":
    main()
