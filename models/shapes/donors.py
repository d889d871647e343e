"""Donors for hosting: `python -m models.shapes.donors --student WEIGHTS --out build/shapes/donors`.

The student generates a donor's video for each pair of prompts; the yardstick reads its layout, and the layout
is carried over to the target's scene. Donors whose video does not show its prompt are left out, as a filter
would in a real model. Only seeds and layouts are written: the latents are computed again in training, on the
same kind of device, because the seed of a noise gives other noise on another. An interrupted run continues
with the next file.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.shapes.carry import carry_layout
from models.shapes.layout import Layout, draw_layout
from models.shapes.network import Network, decode, noise
from models.shapes.pairs import Pairs, load_training_pairs
from models.shapes.prompts import MAX_TOKENS
from models.shapes.training import start_from
from models.shapes.world import Scene, parse_scene
from models.shapes.yardstick.reader import read

FILE_SIZE: Final = 256  # pairs per file
_BATCH: Final = 16
Arrays = tuple[NDArray[Any], ...]  # the fields of a layout; processes exchange arrays faster than tensors
# Applies a function to each of some videos with their scenes and seeds.
Apply = Callable[..., Iterable[Arrays | None]]


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


def donor_noise(pair: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Draws the noise from which the donors of pairs start, [n, C, T, H, W], by a generator of a device."""
    return torch.cat([noise(1, torch.Generator(device).manual_seed(i)) for i in pair])


def read_layout(video: NDArray[np.float32], donor: Scene, target: Scene, seed: int) -> Arrays | None:
    """Reads a donor's video [3, T, H, W] and returns the layout of the target's scene, see `carry_layout`."""
    torch.set_num_threads(1)  # one process reads one video
    generator = torch.Generator().manual_seed(seed)
    layout = carry_layout(read(torch.from_numpy(video)), donor, target, generator)
    return None if layout is None else to_arrays(layout)


def to_arrays(layout: Layout) -> Arrays:
    """Returns the fields of a layout."""
    return tuple(getattr(layout, f.name).numpy() for f in fields(Layout))


def make_donors(
    student: Network, pairs: Pairs, chosen: Sequence[int], device: str = "cpu", apply: Apply = map
) -> Donors:
    """Generates donors of chosen pairs and reads them.

    Args:
        pairs: Pairs on the CPU.
        device: Device of the student.
        apply: Applies a function to the arguments of each video, like `map`.
    """
    videos: list[NDArray[np.float32]] = []
    for begin in range(0, len(chosen), _BATCH):
        some = list(chosen[begin : begin + _BATCH])
        text, bias = (t.to(device) for t in pairs.donors.text(torch.tensor(some), MAX_TOKENS))
        *_, clean = student.trajectory(donor_noise(some, device), text, bias)
        videos += list(decode(clean).cpu().numpy())
    scenes = [[parse_scene(p.table[i]) for i in chosen] for p in (pairs.donors, pairs.targets)]
    read_layouts = zip(chosen, apply(read_layout, videos, *scenes, chosen), strict=True)
    found = {i: arrays for i, arrays in read_layouts if arrays is not None}
    none = to_arrays(draw_layout(pairs.targets.table[:0], torch.Generator()))
    parts = zip(none, *found.values(), strict=True)
    layout = Layout(*(torch.from_numpy(np.concatenate(part)) for part in parts))
    return Donors(torch.tensor(list(found), dtype=torch.int64), layout)


def join_layouts(layouts: Sequence[Layout]) -> Layout:
    """Joins layouts to one of all their videos. At least one is needed."""
    return Layout(**{f.name: torch.cat([getattr(x, f.name) for x in layouts]) for f in fields(Layout)})


def write_donors(student: Network, pairs: Pairs, folder: Path, device: str, apply: Apply = map) -> None:
    """Writes the donors of all pairs, FILE_SIZE pairs per file; existing files are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for begin in range(0, len(pairs), FILE_SIZE):
        path = folder / f"{begin:06}.pt"
        if path.exists():
            continue
        chosen = range(begin, min(begin + FILE_SIZE, len(pairs)))
        donors = make_donors(student, pairs, chosen, device, apply)
        state = {"pair": donors.pair, "layout": donors.layout.__dict__, "device": torch.device(device).type}
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
        print(f"{path.name}: {len(donors)} of {len(chosen)} donors show their prompt", flush=True)


def load_donors(folder: Path, device: str = "cpu") -> Donors:
    """Reads the donors of a folder to a device.

    Raises FileNotFoundError if the folder has none, ValueError if they were made on another kind of device.
    """
    parts = [torch.load(path, map_location="cpu") for path in sorted(folder.glob("*.pt"))]
    if not parts:
        raise FileNotFoundError(f"{folder}: no donors; write them with python -m models.shapes.donors")
    kind = torch.device(device).type
    if wrong := {p["device"] for p in parts} - {kind}:
        raise ValueError(f"{folder}: its donors were made on {', '.join(wrong)}, not {kind}; make them again")
    layout = join_layouts([Layout(**p["layout"]) for p in parts]).to(device)
    return Donors(torch.cat([p["pair"] for p in parts]).to(device), layout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", type=Path, required=True, help="averaged weights of the student")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--prompts", type=Path, default=Path("build/shapes/captions"), help="token states")
    parser.add_argument("--pair-count", type=int, default=6000, help="number of pairs of prompts")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pairs")
    parser.add_argument("--device", default="cpu", help="torch device that generates")
    parser.add_argument("--workers", type=int, default=2, help="number of processes that read videos")
    args = parser.parse_args()
    pairs = load_training_pairs(args.prompts, args.pair_count, args.seed)
    with torch.device(args.device):
        student = Network()
    start_from(student, args.student)
    spawn = multiprocessing.get_context("spawn")  # a fork would share torch's threads and device
    with ProcessPoolExecutor(args.workers, spawn) as pool:
        write_donors(student, pairs, args.out, args.device, pool.map)


if __name__ == "__main__":
    main()
