"""Prompts of the comparisons, and the ways to generate their videos (cells)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from torch import Tensor

from bench import results
from bench.shapes.workers import Models, Workers
from models.shapes.captions import caption
from models.shapes.generate import Draft, Generator, Run
from models.shapes.measure import (
    DONOR_SEED,
    Case,
    Cell,
    Measurement,
    draw_edited_scenes,
    draw_other_pairs,
    measure_case,
)
from models.shapes.prompts import Prompts, draw_prompts, encode_prompts
from models.shapes.world import Scene, Split, parse_scene
from models.shapes.yardstick.classifier import SHA256

FIRST_SEED: Final = 90_000
CACHE: Final = results.ROOT / "build" / "shapes" / "bench"
YARDSTICK: Final = "2"  # version of the measurements that are kept; raise it when the yardstick changes
CONTRAST: Final = 0.5
Cells = dict[str, Cell]


def states_of(prompts: Prompts, i: int) -> Tensor:
    """Returns the token states [L, D] of a prompt."""
    return prompts.states[prompts.offsets[i] : prompts.offsets[i + 1]].float()


def prompt_cases(split: Split, count: int, unseen_words: bool = False) -> list[Case]:
    """Draws prompts that name every attribute, half of them with two objects, in unseen phrasings."""
    prompts = draw_prompts(split, count, FIRST_SEED, "unseen", unseen_words)
    return [Case(parse_scene(prompts.table[i]), states_of(prompts, i), FIRST_SEED + i) for i in range(count)]


def edit_cases(split: Split, per_kind: int) -> list[Case]:
    """Draws pairs of prompts that differ by one edit, `per_kind` of each kind."""
    return _pair_cases(draw_edited_scenes(split, per_kind, FIRST_SEED))


def other_cases(split: Split, per_kind: int) -> list[Case]:
    """Draws pairs of prompts that differ by two edits, and unrelated ones, `per_kind` of each."""
    return _pair_cases(draw_other_pairs(split, per_kind, FIRST_SEED))


def _pair_cases(pairs: Sequence[tuple[str, Scene, Scene]]) -> list[Case]:
    rng = random.Random(FIRST_SEED)
    donors, targets = (
        encode_prompts(scenes, [caption(s, rng, "unseen") for s in scenes])
        for scenes in ([donor for _, donor, _ in pairs], [target for _, _, target in pairs])
    )
    return [
        Case(target, states_of(targets, i), FIRST_SEED + i, kind, donor, states_of(donors, i))
        for i, (kind, donor, target) in enumerate(pairs)
    ]


def _identify(generator: Generator) -> str:
    """Returns a digest of the weights and of the host adapter's."""
    host = generator.model.host
    parts = (SHA256, YARDSTICK, generator.model.weights_digest, host.weights_digest if host else "")
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def plain(
    generator: Generator, steps: int | None = None, donor_seed: bool = False, host: bool = False
) -> Cell:
    """Returns the cell of plain runs, from a case's own seed or from its donor's."""
    offset = DONOR_SEED if donor_seed else 0
    return Cell(
        _identify(generator),
        lambda case, _: generator.run(case.states, case.seed + offset, steps, host).latents[-1],
    )


def reused(
    generator: Generator, level: int, host: bool, contrast: float = 0.0, draft_step: int | None = None
) -> Cell:
    """Returns the cell of runs that continue from the donor's latents at a level, or from a draft."""

    def generate(case: Case, donor: Run | None) -> Tensor:
        assert donor is not None
        draft = None if draft_step is None else Draft(draft_step, case.seed)
        return generator.reuse(donor, case.states, level, host, contrast, draft)

    return Cell(_identify(generator), generate)


def prompt_cells(models: Models) -> Cells:
    """Returns the cells of plain prompts: the student in four to one step, and its rivals."""
    student = models["student"]
    cells = {"steps_4": plain(student)} | {f"steps_{n}": plain(student, n) for n in (3, 2, 1)}
    rivals = {"two_step_student": "student-2", "one_step_student": "student-1"}
    return cells | {cell: plain(models[model]) for cell, model in rivals.items() if model in models}


def word_cells(models: Models) -> Cells:
    """Returns the cell of prompts in held-out words."""
    return {"steps_4": plain(models["student"])}


def extra_cells(models: Models) -> Cells:
    """Returns cells that are measured on few prompts: the teacher, and plain runs with the host on."""
    cells = {"steps_4": plain(models["student"])}
    if models["student"].model.host is not None:
        cells["host_always_on"] = plain(models["student"], host=True)
    if "host-full" in models:
        cells["host_full_always_on"] = plain(models["host-full"])
    if "teacher" in models:
        cells["teacher"] = plain(models["teacher"])
    return cells


def edit_cells(models: Models) -> Cells:
    """Returns the cells of edits: plain runs, reruns of the donor's seed, and reuse at K1 = 1, 2, 3."""
    student = models["student"]
    cells = {"own": plain(student), "plain_one_step": plain(student, 1), "rerun": plain(student, None, True)}
    for name, model in (("rerun_two_step", "student-2"), ("rerun_one_step", "student-1")):
        if model in models:
            cells[name] = plain(models[model], donor_seed=True)
    cells |= {f"base_k{k}": reused(student, k, False) for k in (1, 2, 3)}
    cells["base_contrast_k3"] = reused(student, 3, False, CONTRAST)
    if student.model.host is not None:
        cells |= {f"host_k{k}": reused(student, k, True) for k in (1, 2, 3)}
        cells |= {f"host_contrast_k{k}": reused(student, k, True, CONTRAST) for k in (2, 3)}
        cells |= {f"draft_k{k}": reused(student, k, True, draft_step=3) for k in (2, 3)}
        cells["draft_contrast_k3"] = reused(student, 3, True, CONTRAST, draft_step=3)
    if "host-full" in models:
        cells["host_full_k3"] = reused(models["host-full"], 3, False)
    return cells


def other_cells(models: Models) -> Cells:
    """Returns the cells of double edits and unrelated pairs."""
    student = models["student"]
    cells = {"own": plain(student)} | {f"base_k{k}": reused(student, k, False) for k in (1, 3)}
    if student.model.host is not None:
        cells |= {f"host_k{k}": reused(student, k, True) for k in (1, 2, 3)}
        cells["draft_k3"] = reused(student, 3, True, draft_step=3)
    return cells


@dataclass(frozen=True)
class Task:
    """A case to be measured, and the file in which its measurements are kept."""

    case: Case
    path: Path | None


def _measure(build: Callable[[Models], Cells], models: Models, task: Task) -> dict[str, Measurement]:
    return measure_case(task.case, build(models), models["student"], task.path)


def measure_cells(
    name: str,
    cases: Sequence[Case],
    build: Callable[[Models], Cells],
    workers: Workers,
    cache: Path | None = CACHE,
) -> dict[str, list[Measurement]]:
    """Measures cases in all cells. Interrupted runs continue from `cache`."""
    tasks = [Task(case, None if cache is None else cache / f"{name}-{digest(case)}.pt") for case in cases]
    rows = workers.map(name, partial(_measure, build), tasks)
    return {cell: [row[cell] for row in rows] for cell in rows[0]}


def digest(case: Case) -> str:
    """Returns a name for a case: its prompts, their words and its seed."""
    parts = hashlib.sha256(f"{case.seed} {case.donor_scene} {case.scene}".encode())
    for states in (case.states, case.donor_states):
        if states is not None:
            parts.update(states.numpy().tobytes())
    return parts.hexdigest()[:16]
