"""Donors for hosting: `python -m models.shapes.donors --student WEIGHTS --out build/shapes/donors`.

The student generates a donor's video for each pair of prompts; the yardstick reads its layout, and the layout
is carried over to the target's scene. Donors whose video does not show its prompt are left out, as a filter
would in a real model. Only seeds and layouts are written: the latents are computed again in training. An
interrupted run continues with the next file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from models.shapes.carry import carry_layout
from models.shapes.layout import Layout, draw_layout
from models.shapes.network import Network, decode, noise
from models.shapes.pairs import Pairs, load_training_pairs
from models.shapes.prompts import MAX_TOKENS
from models.shapes.training import start_from
from models.shapes.world import parse_scene
from models.shapes.yardstick.reader import read

FILE_SIZE: Final = 64  # pairs per file
_BATCH: Final = 16


@dataclass(frozen=True)
class Donors:
    """Donors of pairs of prompts.

    Attributes:
        pair: Index of the pair, which is also the seed of the donor's noise, int64 [n].
        layout: Layouts of the targets that keep the donors', of n videos.
    """

    pair: Tensor
    layout: Layout

    def __len__(self) -> int:
        return len(self.pair)


def donor_noise(pair: Sequence[int]) -> Tensor:
    """Draws the noise from which the donors of pairs start, [n, C, T, H, W]."""
    return torch.cat([noise(1, torch.Generator().manual_seed(i)) for i in pair])


def make_donors(student: Network, pairs: Pairs, chosen: Sequence[int]) -> Donors:
    """Generates donors of chosen pairs and reads them."""
    kept: list[int] = []
    layouts = [draw_layout(pairs.targets.table[:0], torch.Generator())]  # of no video
    for begin in range(0, len(chosen), _BATCH):
        some = list(chosen[begin : begin + _BATCH])
        text, bias = pairs.donors.text(torch.tensor(some), MAX_TOKENS)
        *_, clean = student.trajectory(donor_noise(some), text, bias)
        for i, video in zip(some, decode(clean), strict=True):
            donor, target = (parse_scene(p.table[i]) for p in (pairs.donors, pairs.targets))
            g = torch.Generator().manual_seed(i)
            if layout := carry_layout(read(video), donor, target, g):
                kept.append(i)
                layouts.append(layout)
    return Donors(torch.tensor(kept, dtype=torch.int64), join_layouts(layouts))


def join_layouts(layouts: Sequence[Layout]) -> Layout:
    """Joins layouts to one of all their videos. At least one is needed."""
    return Layout(**{f.name: torch.cat([getattr(x, f.name) for x in layouts]) for f in fields(Layout)})


def write_donors(student: Network, pairs: Pairs, folder: Path) -> None:
    """Writes the donors of all pairs, FILE_SIZE pairs per file; existing files are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for begin in range(0, len(pairs), FILE_SIZE):
        path = folder / f"{begin:06}.pt"
        if path.exists():
            continue
        chosen = range(begin, min(begin + FILE_SIZE, len(pairs)))
        donors = make_donors(student, pairs, chosen)
        torch.save({"pair": donors.pair, "layout": donors.layout.__dict__}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
        print(f"{path.name}: {len(donors)} of {len(chosen)} donors show their prompt", flush=True)


def load_donors(folder: Path) -> Donors:
    """Reads the donors of a folder. Raises FileNotFoundError if it has none."""
    parts = [torch.load(path) for path in sorted(folder.glob("*.pt"))]
    if not parts:
        raise FileNotFoundError(f"{folder}: no donors; write them with python -m models.shapes.donors")
    layout = join_layouts([Layout(**p["layout"]) for p in parts])
    return Donors(torch.cat([p["pair"] for p in parts]), layout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", type=Path, required=True, help="averaged weights of the student")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--prompts", type=Path, default=Path("build/shapes/captions"), help="token states")
    parser.add_argument("--pair-count", type=int, default=6000, help="number of pairs of prompts")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pairs")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    student = Network()
    start_from(student, args.student)
    write_donors(student, load_training_pairs(args.prompts, args.pair_count, args.seed), args.out)


if __name__ == "__main__":
    main()
