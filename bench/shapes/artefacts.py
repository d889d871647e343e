"""Validation of the artefact measure: rates on clean and on corrupted renders and generated videos."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from bench import results
from bench.results import Figure
from bench.shapes.workers import Models, Workers
from models.shapes.figures import mean_figure
from models.shapes.layout import draw_layout
from models.shapes.measure import Case
from models.shapes.render import render
from models.shapes.world import Scene, Split, draw_scene, scene_table
from models.shapes.yardstick.comparison import compare
from models.shapes.yardstick.corrupt import GHOSTS, pass_codec, paste_ghost
from models.shapes.yardstick.reader import read
from models.shapes.yardstick.residue import measure_artefacts
from models.shapes.yardstick.validate import OPACITIES

FIRST_SEED: Final = 40_000


@dataclass(frozen=True)
class Check:
    """Artefacts of a video that passed the codec.

    Attributes:
        right: Whether it shows its whole scene.
        found: Whether an artefact is found in it as it is.
        share: Share of its pixels in artefacts.
        ghosts: Whether an artefact is found after pasting each of GHOSTS; empty if not tried.
    """

    right: bool
    found: bool
    share: float
    ghosts: tuple[bool, ...]


def check_video(video: Tensor, scene: Scene, seed: int, ghosts: bool) -> Check:
    """Measures artefacts of a video [3, T, H, W], as it is and with ghosts of another scene's object."""
    video, rng = pass_codec(video), random.Random(seed)
    reading = read(video)
    clean = measure_artefacts(reading, len(scene.things))
    outcomes = []
    for kind in GHOSTS if ghosts else ():
        pasted = None
        while pasted is None:  # an invisible ghost is not pasted
            pasted = paste_ghost(video, kind, rng.uniform(*OPACITIES), rng)
        outcomes.append(measure_artefacts(read(pass_codec(pasted[0])), len(scene.things)).found)
    return Check(compare(reading.scene, scene)["all"], clean.found, clean.share, tuple(outcomes))


def _check_render(split: Split, ghosted: int, _: Models, number: int) -> Check:
    scene = draw_scene(split, random.Random(FIRST_SEED + number), 1 + number % 2)
    table = scene_table([scene])
    layout = draw_layout(table, torch.Generator().manual_seed(FIRST_SEED + number))
    return check_video(render(table, layout)[0], scene, number, number < ghosted)


def _check_generated(models: Models, case: Case) -> Check:
    student = models["student"]
    return check_video(
        student.video(student.run(case.states, case.seed).latents[-1]), case.scene, case.seed, True
    )


def artefact_figures(
    split: Split, renders: int, ghosted: int, cases: Sequence[Case], workers: Workers
) -> dict[str, Figure]:
    """Measures how often artefacts are found.

    Rates of generated videos count plain runs of four steps that show their whole scene; those of ghosts also
    leave out videos with an artefact of their own. The false rate of generated videos includes what the model
    really does wrong: it is an upper bound.

    Args:
        renders: Number of clean renders.
        ghosted: Number of these with ghosts, one of each kind.
        cases: Prompts of the generated videos.
    """
    rendered = workers.map("renders", partial(_check_render, split, ghosted), range(renders))
    figures = _rates(rendered, "")
    figures["artefact_share_renders"] = mean_figure([c.share for c in rendered], "share")
    if cases:
        right = [c for c in workers.map("ghosts", _check_generated, cases) if c.right]
        figures |= _rates(right, "_generated") if right else {}
    return figures


def _rates(checks: Sequence[Check], suffix: str) -> dict[str, Figure]:
    figures = {f"ghost_false_rate{suffix}": results.share(sum(c.found for c in checks), len(checks))}
    hits = [hit for c in checks if not (c.found and suffix) for hit in c.ghosts]
    if hits:
        figures[f"ghost_detection_rate{suffix}"] = results.share(sum(hits), len(hits))
    return figures
