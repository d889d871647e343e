"""Evaluates the model: generates videos for scenes of a split and compares them with their prompts.

`python -m models.movingshapes.evaluate --split calibration` prints a table; `--sheet` also draws the first
videos. Videos are read by image analysis. The committed figures come from `python -m bench.model`, on `test`.
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
FIRST_SEED: Final = 90_000  # first seed of videos and phrasings; training uses small seeds


@dataclass(frozen=True)
class Verdict:
    """Result for one prompt.

    Attributes:
        prompt: Prompt.
        scene: Scene that the prompt requests.
        right: Result of `analyzer.compare`.
    """

    prompt: str
    scene: Scene
    right: dict[str, bool]

    @property
    def single(self) -> bool:
        """Returns whether the scene has exactly one object."""
        return len(self.scene.things) == 1


def load_prompts(split: Split, count: int, phrasing: Phrasing, unseen_words: bool = False) -> Captions:
    """Draws prompts of a split, half of them with two objects, and encodes them."""
    scenes = draw_scenes(split, count, FIRST_SEED)
    return encode_captions(scenes, write_captions(scenes, FIRST_SEED, phrasing, unseen_words))


def generate(model: LoadedModel, states: Any, seed: int) -> Tensor:
    """Generates a video [3, T, H, W] for token states [L, D], in the model's default size and schedule."""
    video = model.spec.video
    text = model.prepare_text(states)
    noise = model.noise(seed, model.latent_shape(video.frames, video.height, video.width))
    predictor, sigmas = Predictor.eager(model), model.spec.schedule.sigmas
    *_, clean = sample(lambda x, s: predictor.latent_velocity(x, s, text), noise, sigmas)
    return model.decode(clean)


def videos(model: LoadedModel, captions: Captions) -> Iterable[tuple[str, Scene, Tensor]]:
    """Yields prompt, scene and video of every caption, each from a different seed."""
    for i, text in enumerate(captions.texts):
        states = captions.states[i][captions.mask[i]].float()
        yield text, parse_scene(captions.table[i]), generate(model, states, FIRST_SEED + i)


def judge(model: LoadedModel, captions: Captions) -> list[Verdict]:
    """Generates a video for every caption and compares it with the requested scene."""
    generated = videos(model, captions)
    return [Verdict(text, scene, compare(read_scene(video), scene)) for text, scene, video in generated]


def count_hits(verdicts: Sequence[Verdict], field: str) -> int:
    """Counts the verdicts in which a field is right."""
    return sum(v.right[field] for v in verdicts)


def contact_sheet(rows: Sequence[tuple[str, Tensor]], scale: int = 2, every: int = 2) -> Image.Image:
    """Draws one row per video: the caption above every second frame."""
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
    parser.add_argument("--model", type=Path, default=STUDENT, help="model file")
    parser.add_argument(
        "--split",
        choices=("train", "calibration", "test"),
        default="calibration",
        help="split of the scenes; test is for final reports only",
    )
    parser.add_argument(
        "--phrasing", choices=("seen", "unseen"), default="unseen", help="sentence patterns of the prompts"
    )
    parser.add_argument("--unseen-words", action="store_true", help="use only words held out of training")
    parser.add_argument("--count", type=int, default=200, help="number of prompts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of CPU threads")
    parser.add_argument("--sheet", type=Path, help="PNG file for a contact sheet of the first videos")
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
        shares = "  ".join(f"{f} {count_hits(part, f) / len(part):.1%}" for f in (*FIELDS, "all"))
        print(f"{name:11} n = {len(part)}  {shares}")
    if args.wrong:
        for v in verdicts:
            if not v.right["all"]:
                print(v.prompt, "| wrong:", *(f for f in FIELDS if not v.right[f]))


if __name__ == "__main__":
    main()
