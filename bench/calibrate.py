"""Measures how far reuse may go and writes planning/calibrations/movingshapes.json of the scheduler.

For pairs of prompts of the calibration split, every depth that a plan may have is tried, and what it costs in
alignment and donor drift is written down by kind of edit, as the embedder tells the kind. The planner reads
the file. Takes about twenty minutes on two cores.
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
from chorus.common.v1 import plan_pb2
from chorus_rpc.plan_bounds import DEFAULT_REGION
from rich.progress import track

from bench import results
from bench.in_process import FULL, Trial, trials
from evaluation.prompts import Group
from evaluation.scenes import make_groups
from models.movingshapes.network import FEW_STEPS
from services.scheduler.planning.calibration import LIMITS, Calibration, Depth, Row, to_plain
from services.scheduler.planning.edits import EditKind

OUT: Final = results.ROOT / "services" / "scheduler" / "planning" / "calibrations" / "movingshapes.json"
# Fewer pairs of an edit say too little.
LEAST: Final = 16
# Depths that cost more than the policies allow are of no use to a planner.
WORST: Final = max(LIMITS.values())


def _contrast(strength: float) -> plan_pb2.Amplification:
    return plan_pb2.Amplification(form=plan_pb2.AMPLIFICATION_FORM_CONTRAST, strength=strength)


def _region(source: plan_pb2.RegionSource.ValueType) -> plan_pb2.RegionPlan:
    region = plan_pb2.RegionPlan()
    region.CopyFrom(DEFAULT_REGION)
    region.source = source
    return region


def depths() -> dict[str, Depth]:
    """Every depth tried, by name: noise level, source of the region, amplification."""
    found = {}
    for step, sigma in ((1, 0.9375), (2, 0.8333), (3, 0.625)):
        for name, region in (
            ("full", None),
            ("probe", _region(plan_pb2.REGION_SOURCE_PROBE)),
            ("full-step", _region(plan_pb2.REGION_SOURCE_FULL_STEP)),
        ):
            if name == "full-step" and step == 3:  # which is the last
                continue
            for strength in (0.0, 0.5, 1.0)[: 3 if region is None or name == "probe" else 1]:
                if step == 1 and strength == 1.0:
                    continue
                amplified = f" contrast {strength:g}" if strength else ""
                found[f"{step} {name}{amplified}"] = Depth(
                    sigma, region, _contrast(strength) if strength else None
                )
    return found


def rows_of(found: Sequence[Trial], plans: Mapping[str, Depth]) -> list[Row]:
    """A row for each kind of edit and depth that enough pairs speak for, unless it is out of the question."""
    by_edit: dict[EditKind, list[Trial]] = defaultdict(list)
    for trial in found:
        by_edit[trial.edit].append(trial)  # type: ignore[index]  # classify_edit names kinds alone
    rows = []
    for edit in get_args(EditKind):
        those = by_edit[edit]
        if len(those) < LEAST or edit == "unrelated":  # which shall not be reused, whatever it costs
            continue
        for name, depth in plans.items():
            pairs = [(t.videos[FULL], t.videos[name]) for t in those if name in t.videos]
            loss = [100.0 * (full.right - this.right) for full, this in pairs]
            drift = [100.0 * (this.followed - full.followed) for full, this in pairs]
            left = len(FEW_STEPS) - 1 - depth.reuse_steps(FEW_STEPS)
            row = Row(
                edit=edit,
                depth=depth,
                computed_share=round(float(np.mean([this.computed for _, this in pairs])) / left, 4),
                drift_points=round(float(np.mean(drift)), 2),
                alignment_loss_points=round(float(np.mean(loss)), 2),
                error_points=round(max(_error(loss), _error(drift)), 2),
                n=len(pairs),
            )
            if max(row.drift_points, row.alignment_loss_points) <= WORST:
                rows.append(row)
    return rows


def _error(values: Sequence[float]) -> float:
    """Standard error of a mean, with one more pair in which it went wrong than there were: none seen is not
    none at all."""
    n = len(values)
    more = [*values, 100.0]
    return float(np.std(more)) / math.sqrt(n + 1)


def same(groups: Sequence[Group]) -> list[Group]:
    """Groups in which the target's prompt is the donor's own."""
    return [Group("same", g.targets[0], (g.targets[0],)) for g in groups if g.kind == "unrelated"]


def main(
    out: Annotated[Path, typer.Option(help="The calibration to write.")] = OUT,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of prompts, of every kind in turn.")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 1000,
    processes: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    groups = make_groups("calibration", pairs, seed, "unseen")
    groups += same(groups)
    plans = depths()
    found = list(track(trials(groups, plans, seed, processes), "calibrating", len(groups)))
    calibration = Calibration("movingshapes", tuple(rows_of(found, plans)))
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
            f"  ±{row.error_points:4.1f}  n {row.n:4}  computed {row.computed_share:.2f}  {marks}"
        )


if __name__ == "__main__":
    typer.run(main)
