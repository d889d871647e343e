"""Calibrates the planner: `python -m bench.calibrate` writes planning/calibrations/MODEL.json.

For pairs of prompts from the calibration split, runs every reuse depth that a plan may have, and records its
loss of alignment, its donor drift and its artefacts by kind of edit, as classified by the embedder, and how
much its results differ over seeds. The scheduler's planner reads the file. Takes about eighty minutes on two
cores; `--only` measures some depths and keeps the rows of the others.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, cast, get_args

import typer
from rich.progress import track

from bench import results
from bench.in_process import FULL, Trial, run_trials
from bench.seed_spread import run_spreads, summarise_spread
from calibration.depths import depends_on_seed, list_depths
from calibration.rows import MeasuredPair, Score, build_rows, describe_row
from evaluation.prompts import Group
from evaluation.scenes import SINGLE_EDITS, make_groups
from services.contract.edits import EditKind
from services.contract.identity import served_digest
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.model.spec import load_spec
from services.denoiser.model_registry import describe_model
from services.denoiser.settings import SHIPPED_MODEL
from services.scheduler.planning.calibration import Depth, Row
from services.scheduler.planning.calibration_files import read_calibration, to_plain

MODEL: Final = load_spec(SHIPPED_MODEL)
OUT: Final = results.ROOT / "services" / "scheduler" / "planning" / "calibrations" / f"{MODEL.id}.json"


def to_pair(trial: Trial) -> MeasuredPair:
    """Converts a trial to the form of `calibration.rows`."""
    scores = {
        name: (
            Score(float(o.right), float(o.followed), o.artefact_share, float(o.kept)),
            o.computed,
        )
        for name, o in trial.videos.items()
    }
    full, _ = scores.pop(FULL)
    return MeasuredPair(cast(EditKind, trial.edit), full, scores)


def make_identical_groups(groups: Sequence[Group]) -> list[Group]:
    """Returns groups whose target and donor have the same prompt."""
    return [Group("same", g.targets[0], (g.targets[0],)) for g in groups if g.kind == "unrelated"]


def keep_rows(out: Path, plans: Mapping[str, Depth], digest: str) -> list[Row]:
    """Returns the rows of the file at other depths. Raises SystemExit if it is of another model."""
    kept = read_calibration(out)
    if kept.served_digest != digest:
        raise SystemExit(f"--only: {out} was measured on other weights or settings; measure every depth")
    return [row for row in kept.rows if row.depth not in plans.values()]


def main(
    out: Annotated[Path, typer.Option(help="Calibration file to write.")] = OUT,
    pairs: Annotated[
        int, typer.Option(min=1, help="Number of prompt pairs, cycling through all kinds.")
    ] = 1000,
    targets: Annotated[int, typer.Option(min=1, help="Number of prompts for the spread over seeds.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts and of the first pair.")] = 1000,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes, of one thread each.")] = 2,
    only: Annotated[str, typer.Option(help="Names of depths, separated by commas.")] = "",
) -> None:
    """Measures every depth on pairs of prompts and writes the calibration."""
    groups = make_groups("calibration", pairs, seed, "unseen")
    groups += make_identical_groups(groups)
    every = list_depths(MODEL.schedule.sigmas, len(MODEL.schedule.sigmas))
    plans = {name: depth for name, depth in every.items() if not only or name in only.split(",")}
    if only and len(plans) < len(only.split(",")):
        raise typer.BadParameter(f"--only: must be some of {', '.join(every)}")
    served = describe_model(Predictor.eager(LoadedModel.load(SHIPPED_MODEL)))
    kept = [] if len(plans) == len(every) else keep_rows(out, plans, served_digest(served))
    completed = list(track(run_trials(groups, plans, seed, processes), "calibrating", len(groups)))
    edited = [group for group in groups if group.kind in SINGLE_EDITS][:targets]
    seeded = {n: depth for n, depth in plans.items() if depends_on_seed(depth, MODEL.schedule.sampler)}
    spreads = run_spreads(edited, seeded, seed, processes) if seeded else iter(())
    diversity = summarise_spread(list(track(spreads, "varying the seed", len(edited)))) if seeded else {}
    rows = build_rows(list(map(to_pair, completed)), plans, MODEL.schedule.sigmas, diversity)
    kinds = get_args(EditKind)
    report = {
        "model_id": MODEL.id,
        "served_digest": served_digest(served),
        "command": f"python -m bench.calibrate {shlex.join(sys.argv[1:])}".strip(),
        "commit": results.commit(),
        "hardware": results.hardware(),
        "versions": results.versions(),
        "rows": [to_plain(row) for row in sorted([*kept, *rows], key=lambda row: kinds.index(row.edit))],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        print(describe_row(row, next(name for name, depth in plans.items() if depth == row.depth)))


if __name__ == "__main__":
    typer.run(main)
