"""Quality and speed of the model of shapes: `python -m bench.shapes --split test` writes a result file.

Parts, each of which can be run alone (`--only`):

- prompts: four, three, two and one step of the student, and the students distilled for two and for one step;
- edits: reuse at K1 = 1, 2, 3 over all kinds of single edits, with and without the host adapter and contrast,
  reruns of the donor's seed with the new prompt, and a verdict in words;
- words: four steps for prompts whose every attribute is named by a held-out word;
- diversity: several seeds of few prompts;
- artefacts: rates of the artefact measure on clean and corrupted renders and generated videos;
- extra: the teacher, and plain runs with the host adapter switched on, on few prompts;
- other: donors that differ by two edits, and unrelated ones;
- speed: seconds and memory of a denoiser process, and the difference from the reference implementation;
- sheet: a picture of reuse and its rivals (`--picture`).

Videos are generated in float32 with the denoiser's default backend. Measurements of interrupted runs are kept
in build/ and continue from there; the result file is written after every part.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, cast

import torch
import typer

from bench import results
from bench.results import Figure, single
from bench.shapes import figures as parts
from bench.shapes.artefacts import artefact_figures
from bench.shapes.cells import edit_cases, prompt_cases
from bench.shapes.sheet import draw_sheet
from bench.shapes.workers import Workers
from models.shapes.generate import MODELS
from models.shapes.world import Split

PARTS: Final = (
    "prompts",
    "edits",
    "words",
    "diversity",
    "artefacts",
    "extra",
    "other",
    "speed",
    "sheet",
)
DIVERSE: Final = 16  # prompts of the diversity
Figures = dict[str, Figure]


def find_models(folder: Path, host_full: Path | None) -> dict[str, Path]:
    """Returns the model files of a folder by the name of the network, and that of a fully trained host."""
    files = {name: folder / path.name for name, path in MODELS.items() if (folder / path.name).exists()}
    return files if host_full is None else files | {"host-full": host_full}


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "shapes.json",
    split: Annotated[str, typer.Option(help="test (final reports only) or calibration.")] = "calibration",
    count: Annotated[int, typer.Option(min=2, help="Prompts, half of them with two objects.")] = 500,
    per_kind: Annotated[int, typer.Option(min=1, help="Pairs of prompts for each kind of edit.")] = 64,
    few: Annotated[int, typer.Option(min=2, help="Prompts of the parts extra, other and artefacts.")] = 64,
    renders: Annotated[int, typer.Option(min=1, help="Clean renders of the part artefacts.")] = 400,
    only: Annotated[list[str] | None, typer.Option(help="Parts to run; all by default.")] = None,
    host_full: Annotated[Path | None, typer.Option(help="Model file of a fully trained host.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the model files.")] = MODELS["student"].parent,
    picture: Annotated[Path, typer.Option(help="Picture of the part sheet.")] = results.ROOT
    / "docs/images/host.png",
    workers: Annotated[int, typer.Option(min=0, help="Processes of one thread; 0: this process.")] = 2,
) -> None:
    """Measures the model and writes the figures of the chosen parts into the result file."""
    if split not in ("test", "calibration"):
        raise typer.BadParameter(f"split: must be test or calibration, not {split}")
    if wrong := set(only or ()) - set(PARTS):
        raise typer.BadParameter(f"only: must be among {', '.join(PARTS)}, not {', '.join(sorted(wrong))}")
    files = find_models(folder, host_full)
    if "student" not in files:
        raise typer.BadParameter(f"folder: {folder} has no {MODELS['student'].name}")
    for name in MODELS:
        if name not in files:
            print(f"{name}: {folder / MODELS[name].name} is missing; its figures are left out", flush=True)
    chosen = cast(Split, split)
    command = f"python -m bench.shapes {shlex.join(sys.argv[1:])}".strip()
    torch.set_num_threads(1)
    with Workers(files, workers) as pool:
        verdict: list[str] = []

        def edits() -> Figures:
            figures, sentences = parts.edit_figures(chosen, per_kind, pool)
            verdict.extend(sentences)
            return figures

        def sheet() -> Figures:
            draw_sheet(edit_cases(chosen, 1), pool, picture)
            return {}

        run: dict[str, Callable[[], Figures]] = {
            "prompts": lambda: parts.prompt_figures(chosen, count, pool),
            "edits": edits,
            "words": lambda: parts.word_figures(chosen, count, pool),
            "diversity": lambda: parts.diversity_figures(chosen, DIVERSE, pool),
            "artefacts": lambda: artefact_figures(chosen, renders, few, prompt_cases(chosen, few), pool),
            "extra": lambda: parts.extra_figures(chosen, few, pool),
            "other": lambda: parts.other_figures(chosen, few, pool),
            "speed": lambda: parts.speed_figures(chosen),
            "sheet": sheet,
        }
        for name in only or PARTS:
            start = time.monotonic()
            write(out, command, run[name](), verdict if name == "edits" else [])
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


def write(out: Path, command: str, figures: Figures, verdict: list[str]) -> None:
    """Adds figures to a result file, and a verdict if there is one; prints both."""
    report: dict[str, Any] = results.read(out) if out.exists() else {"figures": {}}
    sentences = verdict or report.get("verdict", [])
    results.write(out, command, report["figures"] | figures, verdict=sentences)
    kept = results.read(out)["figures"]
    shares = [kept.get(name, {}).get("value") for name in ("artefact_share", "artefact_share_renders")]
    if all(shares):
        ratio = single(shares[0] / shares[1], "x")
        results.write(out, command, kept | {"artefact_ratio": ratio}, verdict=sentences)
    for label, figure in figures.items():
        interval = f" ({figure.ci95[0]:.4g} to {figure.ci95[1]:.4g})" if figure.ci95 else ""
        print(f"{label}: {figure.value:.4g} {figure.unit}, n = {figure.n}{interval}")
    print("\n".join(verdict), flush=True)


if __name__ == "__main__":
    typer.run(main)
