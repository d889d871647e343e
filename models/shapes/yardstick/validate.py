"""Validates the yardstick: `python -m models.shapes.yardstick.validate --count 100 --videos FOLDER`.

Prints how often the reader is right on rendered videos, and how often artefacts are found in clean and in
corrupted videos: rendered ones, and the mp4 files of a folder, which should be clean videos of a model.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from chorus_cli.explain.video import decode_mp4
from torch import Tensor

from models.shapes.layout import draw_layout
from models.shapes.render import render
from models.shapes.world import COLOURS, SIDE, Scene, Split, draw_scene, draw_scenes, scene_table
from models.shapes.yardstick.comparison import compare
from models.shapes.yardstick.corrupt import (
    GHOSTS,
    add_noise,
    blur,
    pass_codec,
    paste_ghost,
    replace_texture,
    shift_colours,
)
from models.shapes.yardstick.kept import compare_layouts
from models.shapes.yardstick.reader import read
from models.shapes.yardstick.residue import compute_residue, donor_share, measure_artefacts
from models.shapes.yardstick.sharpness import measure_sharpness

OPACITIES: Final = (0.1, 0.5)  # of ghosts; those that are too faint to be visible are drawn again
STRONG_BLUR: Final = 2.0  # pixels
# A clean video of a model is emulated by light blur, light noise and inexact colours.
SOFT_BLUR: Final = 0.6
SOFT_NOISE: Final = 0.015
SOFT_COLOURS: Final = 0.04
SHARPNESS_BLURS: Final = (0.0, 0.5, 1.0, 2.0)

Outcomes = dict[str, list[bool]]


def draw_videos(split: Split, count: int, seed: int) -> tuple[list[Scene], Tensor]:
    """Draws scenes of a split, half of them with two objects, and renders each with a new layout."""
    scenes = draw_scenes(split, count, seed)
    table = scene_table(scenes)
    layout = draw_layout(table, torch.Generator().manual_seed(seed))
    parts = [render(table[i : i + 1], layout.select(slice(i, i + 1))) for i in range(count)]
    return scenes, torch.cat(parts)


def load_videos(folder: Path) -> Iterator[Tensor]:
    """Yields the mp4 files of a folder as videos [3, FRAMES, SIDE, SIDE], repeated pixels averaged."""
    for path in sorted(folder.glob("*.mp4")):
        frames = torch.from_numpy(decode_mp4(path.read_bytes())).permute(3, 0, 1, 2).float() / 127.5 - 1
        factor = frames.shape[-1] // SIDE
        yield F.avg_pool2d(frames, factor) if factor > 1 else frames


def validate_reader(scenes: Sequence[Scene], videos: Iterable[Tensor]) -> Outcomes:
    """Returns for each attribute, and for `all`, whether it is read right from each video."""
    outcomes: Outcomes = defaultdict(list)
    for scene, video in zip(scenes, videos, strict=True):
        for field, right in compare(read(video).scene, scene).items():
            outcomes[field].append(right)
    return dict(outcomes)


def soften(video: Tensor, rng: random.Random) -> Tensor:
    """Emulates a clean video of a model: light blur and noise, and colours that are a little off."""
    soft = blur(shift_colours(read(video), SOFT_COLOURS, rng), SOFT_BLUR)
    return pass_codec(add_noise(soft, SOFT_NOISE, rng).clamp(-1, 1))


def validate_artefacts(videos: Iterable[Tensor], seed: int) -> tuple[Outcomes, dict[str, list[float]]]:
    """Corrupts clean videos in every way, and measures artefacts in all of them.

    Returns:
        Whether an artefact is found: in the video as it is (`clean`), in each of GHOSTS, in all of them
        (`ghost`), in a wrong `texture`, and under strong `blur`. And donor's shares of the residue: the
        ghost's own donor (`own_donor`) and that of another ghost (`other_donor`).
    """
    rng = random.Random(seed)
    outcomes: Outcomes = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    for video in videos:
        clean = read(video)
        count = len(clean.objects)
        outcomes["clean"].append(measure_artefacts(clean, count).found)
        other = None
        for kind in GHOSTS:
            pasted = None
            while pasted is None:
                pasted = paste_ghost(video, kind, rng.uniform(*OPACITIES), rng)
            ghosted, donor = pasted
            reading = read(pass_codec(ghosted))
            found = measure_artefacts(reading, count).found
            outcomes[f"ghost_{kind}"].append(found)
            outcomes["ghost"].append(found)
            residue = compute_residue(reading)
            shares["own_donor"].append(donor_share(residue, donor, reading.best_fit))
            if other is not None:
                shares["other_donor"].append(donor_share(residue, other, reading.best_fit))
            other = donor
        for name, corrupted in (("texture", replace_texture(clean, rng)), ("blur", blur(video, STRONG_BLUR))):
            outcomes[name].append(measure_artefacts(read(pass_codec(corrupted)), count).found)
    return dict(outcomes), dict(shares)


def validate_layout_kept(count: int, seed: int) -> Outcomes:
    """Edits the colour of one object, and renders the edited scene with the donor's layout and with another.

    Returns whether the layout is found to be kept: `same` and `other`.
    """
    rng = random.Random(seed)
    outcomes: Outcomes = {"same": [], "other": []}
    for number in range(count):
        donor = draw_scene("train", rng, 1 + number % 2)
        thing = donor.things[0]
        taken = {donor.background, *(t.colour for t in donor.things)}
        colour = rng.choice([c for c in COLOURS if c not in taken])
        edited = dataclasses.replace(thing, colour=colour)
        target = dataclasses.replace(donor, things=(edited, *donor.things[1:]))
        tables = scene_table([donor, target])
        layouts = [
            draw_layout(tables[:1], torch.Generator().manual_seed(rng.getrandbits(32))) for _ in range(2)
        ]
        first = read(pass_codec(render(tables[:1], layouts[0])[0]))
        for name, layout in zip(outcomes, layouts, strict=True):
            second = read(pass_codec(render(tables[1:], layout)[0]))
            outcomes[name].append(compare_layouts(first, second, donor, target)["all"])
    return outcomes


def validate_sharpness(videos: Sequence[Tensor]) -> dict[float, list[float]]:
    """Returns the sharpness of objects' rims under each of SHARPNESS_BLURS, of videos that show objects."""
    measured: dict[float, list[float]] = {}
    for sigma in SHARPNESS_BLURS:
        blurred = [blur(v, sigma) if sigma else v for v in videos]
        measured[sigma] = [s for v in blurred if (s := measure_sharpness(read(v))["rims"]) == s]
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="number of rendered videos")
    parser.add_argument("--seed", type=int, default=0, help="seed of scenes, layouts and corruptions")
    parser.add_argument("--videos", type=Path, help="folder with mp4 files of clean generated videos")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scenes, videos = draw_videos("train", args.count, args.seed)
    _print("reader, renders through the codec", validate_reader(scenes, map(pass_codec, videos)))
    rng = random.Random(args.seed)
    _print("artefacts, renders through the codec", validate_artefacts(map(pass_codec, videos), args.seed)[0])
    _print("artefacts, softened renders", validate_artefacts((soften(v, rng) for v in videos), args.seed)[0])
    _print("layout kept", validate_layout_kept(args.count, args.seed))
    if args.videos:
        _print(f"artefacts, {args.videos}", validate_artefacts(load_videos(args.videos), args.seed)[0])


def _print(title: str, outcomes: Outcomes) -> None:
    print(title)
    for name, hits in outcomes.items():
        print(f"  {name:14} {sum(hits) / max(1, len(hits)):.3f} of {len(hits)}", flush=True)


if __name__ == "__main__":
    main()
