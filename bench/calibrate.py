"""Calibrates the planner: `python -m bench.calibrate` writes planning/calibrations/MODEL.json.

For pairs of prompts from the calibration split, runs every reuse depth that a plan may have, and records its
loss of alignment, its donor drift and its artefacts by kind of edit, as classified by the embedder, and how
much its results differ over seeds. The scheduler's planner reads the file. Takes about seventy minutes on two
cores.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, get_args

import numpy as np
import typer
from rich.progress import track

from bench import results
from bench.in_process import FULL, Outcome, Trial, run_trials
from bench.pooling import Estimate, pool
from bench.seed_spread import depends_on_seed, run_spreads, summarise_spread
from evaluation.prompts import Group
from evaluation.scenes import SINGLE_EDITS, make_groups
from services.denoiser.model.spec import load_spec
from services.denoiser.settings import SHIPPED_MODEL
from services.scheduler.planning.calibration import LIMITS, Calibration, Depth, Row, to_plain
from services.scheduler.planning.edits import EditKind

MODEL: Final = load_spec(SHIPPED_MODEL)
OUT: Final = results.ROOT / "services" / "scheduler" / "planning" / "calibrations" / f"{MODEL.id}.json"
# Lower bound on the pairs of an edit; fewer are too few for an estimate.
MIN_PAIRS: Final = 16
# Upper bounds on drift and loss, and on artefacts: the planner cannot use rows that no policy allows.
MAX_POINTS: Final = max(limit.points for limit in LIMITS.values())
MAX_ARTEFACT_POINTS: Final = max(limit.artefact_points for limit in LIMITS.values())


def list_depths() -> dict[str, Depth]:
    """Returns every depth to measure, by name.

    Each reuses every token: continued directly, or from a draft of the last step. Regions are left out until
    their threshold is tuned to this model, and contrast because with the host adapter it lowers alignment at
    the depth that saves most (`bench.shapes`, cells host_k3 and host_contrast_k3).
    """
    levels = MODEL.schedule.sigmas[1:-1]
    last = len(levels)
    full = {f"{step} full": Depth(sigma) for step, sigma in enumerate(levels, start=1)}
    drafts = {
        f"{step} draft": Depth(sigma, draft_sigma=levels[-1])
        for step, sigma in enumerate(levels, start=1)
        if step >= last - 1
    }
    return full | drafts


def build_rows(
    completed: Sequence[Trial], plans: Mapping[str, Depth], diversity: Mapping[str, float]
) -> list[Row]:
    """Builds a row for each kind of edit and depth with enough pairs, except those that no policy allows.

    Loss, drift and artefacts of one depth are estimated for all kinds together (`pooling`).

    Args:
        diversity: Spread over seeds of those depths that depend on the seed.
    """
    by_edit: dict[EditKind, list[Trial]] = defaultdict(list)
    for trial in completed:
        by_edit[trial.edit].append(trial)  # type: ignore[index]  # classify_edit returns no other string
    # Unrelated donors must never be reused.
    edits = [e for e in get_args(EditKind) if len(by_edit[e]) >= MIN_PAIRS and e != "unrelated"]
    rows = []
    for name, depth in plans.items():
        pairs = {e: [(t.videos[FULL], t.videos[name]) for t in by_edit[e] if name in t.videos] for e in edits}
        losses = pool([_estimate([full.right - this.right for full, this in pairs[e]]) for e in edits])
        drifts = pool([_estimate([this.followed - full.followed for full, this in pairs[e]]) for e in edits])
        artefacts = pool([_estimate_artefacts(pairs[e]) for e in edits])
        steps_run = depth.steps_run(MODEL.schedule.sigmas)
        for edit, loss, drift, artefact in zip(edits, losses, drifts, artefacts, strict=True):
            row = Row(
                edit=edit,
                depth=depth,
                computed_share=round(
                    float(np.mean([this.computed for _, this in pairs[edit]])) / steps_run, 4
                ),
                drift_points=round(drift.mean, 2),
                alignment_loss_points=round(loss.mean, 2),
                error_points=round(max(loss.error, drift.error), 2),
                artefact_points=round(artefact.mean, 2),
                artefact_error_points=round(artefact.error, 2),
                layout_kept=round(float(np.mean([this.kept for _, this in pairs[edit]])), 3),
                diversity=round(diversity.get(name, 0.0), 3),
                n=len(pairs[edit]),
            )
            if (
                max(row.drift_points, row.alignment_loss_points) <= MAX_POINTS
                and row.artefact_points <= MAX_ARTEFACT_POINTS
            ):
                rows.append(row)
    return sorted(rows, key=lambda row: edits.index(row.edit))


def _estimate(differences: Sequence[int]) -> Estimate:
    """Estimates the mean of differences in percentage points.

    The standard error counts one additional failing pair. Without it, an edit that never failed in the sample
    would have an error of 0.
    """
    points = 100.0 * np.array(differences)
    with_failure = np.append(points, 100.0)
    return Estimate(float(points.mean()), float(with_failure.std()) / math.sqrt(len(with_failure)))


def _estimate_artefacts(pairs: Sequence[tuple[Outcome, Outcome]]) -> Estimate:
    """Estimates the mean increase of the share of pixels in artefacts, in percentage points."""
    points = 100.0 * np.array([this.artefact_share - full.artefact_share for full, this in pairs])
    # An error of 0 would claim certainty: no estimate is finer than the measure, a thousandth of the pixels.
    return Estimate(float(points.mean()), max(float(points.std()) / math.sqrt(len(points)), 0.1))


def make_identical_groups(groups: Sequence[Group]) -> list[Group]:
    """Returns groups whose target and donor have the same prompt."""
    return [Group("same", g.targets[0], (g.targets[0],)) for g in groups if g.kind == "unrelated"]


def main(
    out: Annotated[Path, typer.Option(help="Calibration file to write.")] = OUT,
    pairs: Annotated[
        int, typer.Option(min=1, help="Number of prompt pairs, cycling through all kinds.")
    ] = 1000,
    targets: Annotated[int, typer.Option(min=1, help="Number of prompts for the spread over seeds.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts and of the first pair.")] = 1000,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes, of one thread each.")] = 2,
) -> None:
    """Measures every depth on pairs of prompts and writes the calibration."""
    groups = make_groups("calibration", pairs, seed, "unseen")
    groups += make_identical_groups(groups)
    plans = list_depths()
    completed = list(track(run_trials(groups, plans, seed, processes), "calibrating", len(groups)))
    edited = [group for group in groups if group.kind in SINGLE_EDITS][:targets]
    seeded = {n: depth for n, depth in plans.items() if depends_on_seed(depth, MODEL.schedule.sampler)}
    spreads = run_spreads(edited, seeded, seed, processes)
    diversity = summarise_spread(list(track(spreads, "varying the seed", len(edited))))
    calibration = Calibration(MODEL.id, tuple(build_rows(completed, plans, diversity)))
    report = {
        "command": f"python -m bench.calibrate {shlex.join(sys.argv[1:])}".strip(),
        "commit": results.commit(),
        "hardware": results.hardware(),
        "versions": results.versions(),
        "rows": [to_plain(row) for row in calibration.rows],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    for row in calibration.rows:
        marks = "".join(policy[0] for policy in LIMITS if row.within(policy))
        name = next(name for name, depth in plans.items() if depth == row.depth)
        print(
            f"{row.edit:11} {name:24} drift {row.drift_points:5.1f}  loss {row.alignment_loss_points:5.1f}"
            f"  ±{row.error_points:4.1f}"
            f"  artefacts {row.artefact_points:5.2f} ±{row.artefact_error_points:4.2f}"
            f"  kept {row.layout_kept:.2f}  diversity {row.diversity:.2f}"
            f"  n {row.n:4}  computed {row.computed_share:.2f}  {marks}"
        )


if __name__ == "__main__":
    typer.run(main)
