"""Pairs of prompts for hosting: a donor's, and the prompt of a request that reuses its latents."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from models.shapes.captions import caption
from models.shapes.edits import EDITS, draw_edit, opens
from models.shapes.prompts import Prompts, encode_prompts
from models.shapes.world import Scene, Split, draw_scenes

Relation = Literal["one edit", "two edits", "unrelated"]
SHARES: Final[dict[Relation, float]] = {"one edit": 0.5, "two edits": 0.3, "unrelated": 0.2}


@dataclass(frozen=True)
class Pairs:
    """Pairs of prompts: pair i are the i-th of `donors` and of `targets`.

    Attributes:
        opening: Whether the target names something whose layout the donor does not show, bool [n].
    """

    donors: Prompts
    targets: Prompts
    opening: Tensor

    def __len__(self) -> int:
        return len(self.opening)

    def to(self, device: torch.device | str) -> Pairs:
        """Returns the pairs with their tensors on a device."""
        return Pairs(self.donors.to(device), self.targets.to(device), self.opening.to(device))


def draw_pairs(split: Split, count: int, seed: int) -> list[tuple[Scene, Scene]]:
    """Draws pairs of scenes in the relations of SHARES."""
    rng = random.Random(seed)
    donors = draw_scenes(split, count, seed)
    strangers = draw_scenes(split, count, seed + 1)
    relations = rng.choices(list(SHARES), list(SHARES.values()), k=count)
    pairs = []
    for donor, stranger, relation in zip(donors, strangers, relations, strict=True):
        target = stranger
        if relation != "unrelated":
            target = edit_scene(donor, 1 if relation == "one edit" else 2, split, rng)
        pairs.append((donor, target))
    return pairs


def edit_scene(scene: Scene, count: int, split: Split, rng: random.Random) -> Scene:
    """Draws a scene that differs from `scene` in `count` respects that its split has scenes for."""
    for edit in rng.sample(EDITS, len(EDITS)):
        if count and (edited := draw_edit(scene, edit, split, rng)):
            scene, count = edited, count - 1
    return scene


def load_training_pairs(folder: Path, count: int, seed: int) -> Pairs:
    """Reads pairs of training prompts from `folder`, or computes them and writes them there.

    Their captions name every attribute: what a prompt leaves open, no donor can be checked against, and no
    edit can change.

    The tensors are on the CPU.
    """
    path = folder / f"pairs-{seed}-{count}.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scenes = draw_pairs("train", count, seed)
        rng = random.Random(seed)
        donors, targets = ([pair[i] for pair in scenes] for i in (0, 1))
        encoded = [encode_prompts(part, [caption(s, rng) for s in part]) for part in (donors, targets)]
        state = {"donors": encoded[0].__dict__, "targets": encoded[1].__dict__}
        torch.save(state | {"opening": torch.tensor([opens(d, t) for d, t in scenes])}, path)
    state = torch.load(path)
    return Pairs(Prompts(**state["donors"]), Prompts(**state["targets"]), state["opening"])
