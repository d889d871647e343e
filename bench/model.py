"""Quality and speed of the shipped model: `python -m bench.model` writes bench/results/model.json.

Measures, on the split `test` by default and in phrasings that training never used: alignment of videos with
their prompts in four steps without a cache; the same prompts with the teacher in thirty steps; seconds and
memory of a denoiser process; and the difference from the reference implementation of the network.
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
from models.movingshapes.evaluate import STUDENT, TEACHER, Verdict, count_hits, judge, load_prompts
from models.movingshapes.world import Split
from services.denoiser.model.loaded import LoadedModel

_NAMES: Final = {"colour": "color"}
_TIMED: Final = 20


def alignment(verdicts: Sequence[Verdict], prefix: str = "alignment") -> dict[str, Figure]:
    """Computes the shares of prompts met: over all prompts, and separately for one and for two objects.

    An attribute counts for a prompt of two objects only if it is right for both.
    """
    single_object = [v for v in verdicts if v.single]
    two_objects = [v for v in verdicts if not v.single]
    figures = {}
    for field in (*FIELDS, "all"):
        name = f"{prefix}_{_NAMES.get(field, field)}"
        figures[name] = share(count_hits(verdicts, field), len(verdicts))
        figures[f"{name}_single"] = share(count_hits(single_object, field), len(single_object))
        figures[f"{name}_two_objects"] = share(count_hits(two_objects, field), len(two_objects))
    return figures


def gap_points(teacher: Sequence[Verdict], student: Sequence[Verdict], field: str) -> Figure:
    """Computes the teacher's lead over the student on the same prompts, in percentage points."""
    differences = [100.0 * (t.right[field] - s.right[field]) for t, s in zip(teacher, student, strict=True)]
    return mean(differences, "percentage points")


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "model.json",
    split: Annotated[
        str, typer.Option(help="Split of the prompts: test (for final reports only) or calibration.")
    ] = "test",
    count: Annotated[
        int, typer.Option(help="Number of prompts for the student, half of them with two objects.")
    ] = 1000,
    teacher_count: Annotated[
        int, typer.Option(help="Number of prompts for the teacher: the first of the student's.")
    ] = 500,
    threads: Annotated[int, typer.Option(help="Number of CPU threads.")] = 2,
) -> None:
    """Measures the shipped model and writes the result file."""
    if split not in ("test", "calibration"):
        raise typer.BadParameter(f"split: must be test or calibration, not {split}")
    chosen = cast(Split, split)
    torch.set_num_threads(threads)
    student, teacher = LoadedModel.load(STUDENT), LoadedModel.load(TEACHER)
    prompts = load_prompts(chosen, count, "unseen")
    states = [prompts.states[i][prompts.mask[i]].float().numpy() for i in range(_TIMED)]
    load = serving.measure(states, threads)
    figures = {
        "generate_seconds_p50": median(load.seconds, "s"),
        "denoiser_rss_mb": single(load.peak_rss_mb, "MB"),
        "weights_mb": single((STUDENT.parent / student.spec.weights.file).stat().st_size / 1e6, "MB"),
    }
    student_verdicts = judge(student, prompts)
    figures |= alignment(student_verdicts)
    figures |= alignment(judge(student, load_prompts(chosen, count // 2, "unseen", True)), "unseen_words")
    figures |= alignment(judge(student, load_prompts("train", count // 2, "seen")), "trained")
    teacher_verdicts = judge(teacher, take_first(prompts, teacher_count))
    figures |= alignment(teacher_verdicts, "teacher")
    figures["teacher_gap_points"] = gap_points(teacher_verdicts, student_verdicts[:teacher_count], "all")
    for field in FIELDS:
        figures[f"teacher_gap_points_{_NAMES.get(field, field)}"] = gap_points(
            teacher_verdicts, student_verdicts[:teacher_count], field
        )
    figures |= parity.measure_figures()
    results.write(out, f"python -m bench.model {shlex.join(sys.argv[1:])}".strip(), figures)
    for name, figure in figures.items():
        interval = f" ({figure.ci95[0]:.4g} to {figure.ci95[1]:.4g})" if figure.ci95 else ""
        print(f"{name}: {figure.value:.4g} {figure.unit}, n = {figure.n}{interval}")


def take_first(captions: Captions, count: int) -> Captions:
    """Returns the first `count` captions."""
    return Captions(
        captions.texts[:count], captions.table[:count], captions.states[:count], captions.mask[:count]
    )


if __name__ == "__main__":
    typer.run(main)
