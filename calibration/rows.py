"""Rows of a calibration, from measured pairs of prompts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast, get_args

import numpy as np

from calibration.pooling import Estimate, pool
from services.contract.edits import EditKind
from services.scheduler.planning.calibration import LIMITS, Depth, Row
from services.scheduler.planning.edits import NEVER_REUSED

# Lower bound on the pairs of an edit; fewer are too few for an estimate.
MIN_PAIRS: Final = 16
# Upper bounds on drift and loss, and on artefacts: the planner cannot use rows that no policy allows.
MAX_POINTS: Final = max(limit.points for limit in LIMITS.values())
MAX_ARTEFACT_POINTS: Final = max(limit.artefact_points for limit in LIMITS.values())


@dataclass(frozen=True)
class Score:
    """What one video shows. All values are shares, 0 to 1.

    Attributes:
        alignment: How far it shows its prompt.
        donor: How far it follows the donor's prompt where the two differ.
        artefacts: Pixels that are part of an artefact; 0 if nothing measures them.
        layout: How far it keeps the donor's layout where the prompt did not change; 0 if nothing measures it.
    """

    alignment: float
    donor: float
    artefacts: float = 0.0
    layout: float = 0.0


@dataclass(frozen=True)
class MeasuredPair:
    """A target in full and at every depth.

    Attributes:
        edit: Kind of edit from the donor's prompt to the target's.
        full: Score of the full computation.
        depths: By name of the depth, the score, and the computation in full steps; empty if the donor would
            never be reused.
    """

    edit: EditKind
    full: Score
    depths: dict[str, tuple[Score, float]]


def count_pairs(pairs: Sequence[MeasuredPair]) -> dict[EditKind, int]:
    """Returns the number of measured pairs of each kind of edit, in the order of EditKind."""
    kinds = [kind for kind in get_args(EditKind) if kind not in NEVER_REUSED]
    counts = {
        cast(EditKind, kind): sum(pair.edit == kind and bool(pair.depths) for pair in pairs) for kind in kinds
    }
    return {kind: count for kind, count in counts.items() if count}


def build_rows(
    pairs: Sequence[MeasuredPair],
    depths: Mapping[str, Depth],
    sigmas: Sequence[float],
    diversity: Mapping[str, float],
    *,
    every: bool = False,
) -> list[Row]:
    """Builds a row for each kind of edit and depth with enough pairs, except those that no policy allows.

    Loss, drift and artefacts of one depth are estimated for all kinds together (`pooling`).

    Args:
        sigmas: Schedule on which the pairs were measured.
        diversity: Spread over seeds of those depths that depend on the seed.
        every: Whether to return the rows that no policy allows as well.
    """
    by_edit: dict[EditKind, list[MeasuredPair]] = defaultdict(list)
    for pair in pairs:
        by_edit[pair.edit].append(pair)
    edits = [edit for edit, count in count_pairs(pairs).items() if count >= MIN_PAIRS]
    rows = []
    for name, depth in depths.items():
        found = {
            edit: [(pair.full, *pair.depths[name]) for pair in by_edit[edit] if name in pair.depths]
            for edit in edits
        }
        losses = pool([_estimate([f.alignment - s.alignment for f, s, _ in found[e]]) for e in edits])
        drifts = pool([_estimate([s.donor - f.donor for f, s, _ in found[e]]) for e in edits])
        artefacts = pool(
            [_estimate_artefacts([s.artefacts - f.artefacts for f, s, _ in found[e]]) for e in edits]
        )
        steps_run = depth.steps_run(sigmas)
        for edit, loss, drift, artefact in zip(edits, losses, drifts, artefacts, strict=True):
            row = Row(
                edit=edit,
                depth=depth,
                computed_share=round(float(np.mean([steps for *_, steps in found[edit]])) / steps_run, 4),
                drift_points=round(drift.mean, 2),
                alignment_loss_points=round(loss.mean, 2),
                error_points=round(max(loss.error, drift.error), 2),
                artefact_points=round(artefact.mean, 2),
                artefact_error_points=round(artefact.error, 2),
                layout_kept=round(float(np.mean([score.layout for _, score, _ in found[edit]])), 3),
                diversity=round(diversity.get(name, 0.0), 3),
                n=len(found[edit]),
            )
            if every or (
                max(row.drift_points, row.alignment_loss_points) <= MAX_POINTS
                and row.artefact_points <= MAX_ARTEFACT_POINTS
            ):
                rows.append(row)
    return sorted(rows, key=lambda row: edits.index(row.edit))


def _estimate(differences: Sequence[float]) -> Estimate:
    """Estimates the mean of differences in percentage points.

    The standard error counts one additional failing pair. Without it, an edit that never failed in the sample
    would have an error of 0.
    """
    points = 100.0 * np.array(differences)
    with_failure = np.append(points, 100.0)
    return Estimate(float(points.mean()), float(with_failure.std()) / math.sqrt(len(with_failure)))


def _estimate_artefacts(differences: Sequence[float]) -> Estimate:
    """Estimates the mean increase of the share of pixels in artefacts, in percentage points."""
    points = 100.0 * np.array(differences)
    # An error of 0 would claim certainty: no estimate is finer than the measure, a thousandth of the pixels.
    return Estimate(float(points.mean()), max(float(points.std()) / math.sqrt(len(points)), 0.1))


def describe_row(row: Row, name: str) -> str:
    """Returns a row as one line of a table, which ends with the initials of the policies that allow it."""
    marks = "".join(policy[0] for policy in LIMITS if row.within(policy))
    return (
        f"{row.edit:15} {name:8} drift {row.drift_points:5.1f}  loss {row.alignment_loss_points:5.1f}"
        f"  ±{row.error_points:4.1f}"
        f"  artefacts {row.artefact_points:5.2f} ±{row.artefact_error_points:4.2f}"
        f"  kept {row.layout_kept:.2f}  diversity {row.diversity:.2f}"
        f"  n {row.n:4}  computed {row.computed_share:.2f}  {marks}"
    )
