"""Measures generated videos with the yardstick, and evaluates a model in the cells of a comparison.

A cell is a way to generate videos, such as "4 steps" or "reuse at level 3 with the host adapter". All cells
of a comparison use the same prompts and seeds, so that they can be compared pair by pair.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from models.shapes.edits import EDITS, Edit, draw_edit, opens
from models.shapes.generate import Generator, Run
from models.shapes.layout import draw_layout
from models.shapes.render import render
from models.shapes.world import Scene, Split, draw_scene, scene_table
from models.shapes.yardstick.classifier import embed_videos
from models.shapes.yardstick.comparison import compare
from models.shapes.yardstick.kept import compare_layouts
from models.shapes.yardstick.reader import Reading, read
from models.shapes.yardstick.residue import compute_residue, donor_share, measure_artefacts
from models.shapes.yardstick.sharpness import measure_sharpness


@dataclass(frozen=True)
class Measurement:
    """What the yardstick says about one video.

    Attributes:
        right: Whether each attribute that the prompt names is shown, and `all`.
        artefact_share: Share of pixels in artefacts.
        has_artefact: Whether there is a visible artefact.
        rims, texture: Sharpness of edges over that of a render; NaN without such edges.
        features: Features of the distribution distance, [F].
        kept: Whether each part of the donor's layout was kept, and `all`; empty without a donor.
        donor_share: Share of the residue that the donor explains; 0 without a donor.
    """

    right: dict[str, bool]
    artefact_share: float
    has_artefact: bool
    rims: float
    texture: float
    features: Tensor
    kept: dict[str, bool] = field(default_factory=dict)
    donor_share: float = 0.0


@dataclass(frozen=True)
class DonorView:
    """A donor as measured: its scene and the reading of its video."""

    scene: Scene
    reading: Reading


def measure_video(video: Tensor, wanted: Scene, donor: DonorView | None = None) -> Measurement:
    """Measures a video [3, T, H, W] of a prompt for the scene `wanted`."""
    reading = read(video)
    artefacts = measure_artefacts(reading, len(wanted.things))
    sharpness = measure_sharpness(reading)
    kept: dict[str, bool] = {}
    explained = 0.0
    if donor is not None:
        kept = compare_layouts(donor.reading, reading, donor.scene, wanted)
        explained = donor_share(compute_residue(reading), donor.reading.video, reading.best_fit)
    return Measurement(
        right=compare(reading.scene, wanted),
        artefact_share=artefacts.share,
        has_artefact=artefacts.found,
        rims=sharpness["rims"],
        texture=sharpness["texture"],
        features=embed_videos(video[None])[0],
        kept=kept,
        donor_share=explained,
    )


@dataclass(frozen=True)
class Case:
    """A prompt and, in comparisons of reuse, its donor's.

    Attributes:
        states: Token states of the prompt, [L, D].
        seed: Seed of the plain run; the donor's run has `seed + DONOR_SEED`.
        kind: Kind of edit, or of another pair of prompts; None without a donor.
    """

    scene: Scene
    states: Tensor
    seed: int
    kind: str | None = None
    donor_scene: Scene | None = None
    donor_states: Tensor | None = None

    @property
    def opening(self) -> bool:
        """Returns whether the prompt names something whose layout the donor does not show."""
        return self.donor_scene is not None and opens(self.donor_scene, self.scene)


DONOR_SEED: Final = 1_000_000


@dataclass(frozen=True)
class Cell:
    """A way to generate videos.

    Attributes:
        identity: Digest of the weights, by which kept measurements are found again.
        generate: Returns the clean latents of a case, given the donor's run if the case has a donor.
    """

    identity: str
    generate: Callable[[Case, Run | None], Tensor]


def draw_other_pairs(split: Split, per_kind: int, seed: int) -> list[tuple[str, Scene, Scene]]:
    """Draws donors and targets that differ by two edits (`two_edits`), and `unrelated` ones."""
    rng = random.Random(seed)
    pairs: list[tuple[str, Scene, Scene]] = []
    while len(pairs) < per_kind:
        donor = draw_scene(split, rng, rng.choice((1, 2)))
        first, second = rng.sample(EDITS, 2)
        between = draw_edit(donor, first, split, rng)
        if between and (target := draw_edit(between, second, split, rng)):
            pairs.append(("two_edits", donor, target))
    for _ in range(per_kind):
        donor, target = (draw_scene(split, rng, rng.choice((1, 2))) for _ in range(2))
        pairs.append(("unrelated", donor, target))
    return pairs


def draw_edited_scenes(split: Split, per_kind: int, seed: int) -> list[tuple[Edit, Scene, Scene]]:
    """Draws donors and targets of single edits, `per_kind` of each kind, from one split."""
    rng = random.Random(seed)
    pairs: list[tuple[Edit, Scene, Scene]] = []
    for edit in EDITS:
        drawn = 0
        while drawn < per_kind:
            donor = draw_scene(split, rng, rng.choice((1, 2)))
            if target := draw_edit(donor, edit, split, rng):
                pairs.append((edit, donor, target))
                drawn += 1
    return pairs


def measure_case(
    case: Case, cells: dict[str, Cell], generator: Generator, path: Path | None = None
) -> dict[str, Measurement]:
    """Measures one case in all cells.

    Args:
        cells: Ways to generate a video, by name.
        generator: Generates the donor, and decodes.
        path: File in which measurements are kept; what it contains is not measured again.
    """
    kept: dict[str, Measurement] = {}
    if path is not None and path.exists():
        kept = torch.load(path, weights_only=False)
    keys = {name: f"{name} {cell.identity}" for name, cell in cells.items()}
    missing = [name for name, key in keys.items() if key not in kept]
    if missing:
        run, donor = None, None
        if case.donor_scene is not None and case.donor_states is not None:
            run = generator.run(case.donor_states, case.seed + DONOR_SEED)
            donor = DonorView(case.donor_scene, read(generator.video(run.latents[-1])))
        for name in missing:
            video = generator.video(cells[name].generate(case, run))
            kept[keys[name]] = measure_video(video, case.scene, donor)
        if path is not None:
            save(path, kept)
    return {name: kept[key] for name, key in keys.items()}


def save(path: Path, value: object) -> None:
    """Writes a file that appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".tmp")
    torch.save(value, part)
    part.replace(path)


def embed_truth(cases: Sequence[Case], seed: int) -> Tensor:
    """Computes the features [n, F] of renders of the cases' scenes, for the distribution distance."""
    table = scene_table([case.scene for case in cases])
    generator = torch.Generator().manual_seed(seed)
    parts = [embed_videos(render(rows, draw_layout(rows, generator))) for rows in torch.split(table, 32)]
    return torch.cat(parts)
