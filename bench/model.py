"""The shipped model's figures: `python -m bench.model` writes bench/results/model.json.

On the split `test`, unless told otherwise, and in phrasings that training never used: what videos show of
what prompts ask for, in four steps, without a cache; the same prompts with the teacher at thirty; seconds and
memory of a denoiser process; and how far the network is from the reference implementation.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, cast

import torch
import typer

from bench import parity, results, serving
from bench.results import Figure, mean, median, share, single
from models.movingshapes.analyzer import FIELDS
from models.movingshapes.data import Captions
from models.movingshapes.evaluate import STUDENT, TEACHER, Verdict, hits, judge, prompts_of
from models.movingshapes.world import Split
from services.denoiser.model.loaded import LoadedModel

_NAMES: Final = {"colour": "color"}
_TIMED: Final = 20


def alignment(verdicts: Sequence[Verdict], prefix: str = "alignment") -> dict[str, Figure]:
    """Shares of prompts met: for all, and apart for one and two objects.

    An attribute counts for a prompt of two objects only where it is right for both.
    """
    one = [v for v in verdicts if v.single]
    two = [v for v in verdicts if not v.single]
    figures = {}
    for field in (*FIELDS, "all"):
        name = f"{prefix}_{_NAMES.get(field, field)}"
        figures[name] = share(hits(verdicts, field), len(verdicts))
        figures[f"{name}_single"] = share(hits(one, field), len(one))
        figures[f"{name}_two_objects"] = share(hits(two, field), len(two))
    return figures


def gap_points(teacher: Sequence[Verdict], student: Sequence[Verdict], field: str) -> Figure:
    """Percentage points by which the teacher meets more of the same prompts; bootstrap over prompts."""
    differences = [100.0 * (t.right[field] - s.right[field]) for t, s in zip(teacher, student, strict=True)]
    return mean(differences, "percentage points")


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "model.json",
    split: Annotated[
        str, typer.Option(help="test is for reports that nothing follows from; otherwise calibration.")
    ] = "test",
    count: Annotated[
        int, typer.Option(help="Prompts for the student, half of them with two objects.")
    ] = 1000,
    teacher_count: Annotated[int, typer.Option(help="The first so many of them for the teacher.")] = 500,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    if split not in ("test", "calibration"):
        raise typer.BadParameter(f"split: must be test or calibration, not {split}")
    chosen = cast(Split, split)
    torch.set_num_threads(threads)
    student, teacher = LoadedModel.load(STUDENT), LoadedModel.load(TEACHER)
    prompts = prompts_of(chosen, count, "unseen")
    states = [prompts.states[i][prompts.mask[i]].float().numpy() for i in range(_TIMED)]
    load = serving.measure(states, threads)
    figures = {
        "generate_seconds_p50": median(load.seconds, "s"),
        "denoiser_rss_mb": single(load.peak_rss_mb, "MB"),
        "weights_mb": single((STUDENT.parent / student.spec.weights.file).stat().st_size / 1e6, "MB"),
    }
    met = judge(student, prompts)
    figures |= alignment(met)
    figures |= alignment(judge(student, prompts_of(chosen, count // 2, "unseen", True)), "unseen_words")
    figures |= alignment(judge(student, prompts_of("train", count // 2, "seen")), "trained")
    best = judge(teacher, first(prompts, teacher_count))
    figures |= alignment(best, "teacher")
    figures["teacher_gap_points"] = gap_points(best, met[:teacher_count], "all")
    for field in FIELDS:
        figures[f"teacher_gap_points_{_NAMES.get(field, field)}"] = gap_points(
            best, met[:teacher_count], field
        )
    figures |= parity.measure_figures()
    results.write(out, f"python -m bench.model {shlex.join(sys.argv[1:])}".strip(), figures)
    for name, figure in figures.items():
        interval = f" ({figure.ci95[0]:.4g} to {figure.ci95[1]:.4g})" if figure.ci95 else ""
        print(f"{name}: {figure.value:.4g} {figure.unit}, n = {figure.n}{interval}")


def first(captions: Captions, count: int) -> Captions:
    """The first captions."""
    return Captions(
        captions.texts[:count], captions.table[:count], captions.states[:count], captions.mask[:count]
    )


if __name__ == "__main__":
    typer.run(main)
