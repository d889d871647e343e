"""How far reuse may go, as measured: one file for each model, written by `python -m bench.calibrate`.

A row says what one depth of reuse cost in quality for one kind of edit, over pairs of prompts of the
calibration split. Depths are noise levels, so that a row means the same for every number of steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, TypeAlias, get_args

from chorus.common.v1 import plan_pb2
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from services.contract.reuse import needs_side_data
from services.scheduler.planning.edits import EditKind

Policy: TypeAlias = Literal["off", "safe", "balanced", "fast"]

# By how many percentage points results may lose alignment, and follow the donor more often, than in full.
LIMITS: dict[Policy, float] = {"safe": 1.0, "balanced": 3.0, "fast": 12.0}
# The most that a model may have, lest a broken file take the planner's time.
_MAX_ROWS = 1_000
_MEASURED = ("computed_share", "drift_points", "alignment_loss_points", "error_points")


@dataclass(frozen=True)
class Depth:
    """How much is reused.

    Args:
        sigma: the noise level down to which everything is the donor's: K1 is the last step boundary that is
            not below it.
        region: how stage 2 finds what it computes, to the end of the run; None: no stage 2.
        amplification: None: none.
    """

    sigma: float
    region: plan_pb2.RegionPlan | None = None
    amplification: plan_pb2.Amplification | None = None

    def first_step(self, sigmas: Sequence[float]) -> int:
        """K1 for a schedule; 0 where its first step already goes below."""
        return max((i for i, s in enumerate(sigmas[:-1]) if s >= self.sigma - 1e-9), default=0)

    @property
    def needs_side_data(self) -> bool:
        return needs_side_data(self.region, self.amplification)


@dataclass(frozen=True)
class Row:
    """What a depth cost, for one kind of edit.

    Args:
        computed_share: tokens computed in the steps that were run, by all tokens of those steps; above 1
            where the search for the region found that it is everything.
        drift_points: percentage points by which more results followed the donor than in full.
        alignment_loss_points: percentage points by which fewer showed what was asked.
        error_points: standard error of the two, the larger; counted against the row, so that what few pairs
            of prompts speak for is not believed.
        n: pairs of prompts behind it.
    """

    edit: EditKind
    depth: Depth
    computed_share: float
    drift_points: float
    alignment_loss_points: float
    error_points: float
    n: int

    def within(self, policy: Policy) -> bool:
        limit = LIMITS.get(policy)
        cost = max(self.drift_points, self.alignment_loss_points) + self.error_points
        return limit is not None and cost <= limit


@dataclass(frozen=True)
class Calibration:
    """The rows of one model."""

    model_id: str
    rows: tuple[Row, ...]

    def allowed(self, edit: EditKind, policy: Policy) -> list[Row]:
        return [row for row in self.rows if row.edit == edit and row.within(policy)]

    def knows(self, edit: EditKind) -> bool:
        return any(row.edit == edit for row in self.rows)


@cache
def calibration_of(model_id: str) -> Calibration | None:
    """The calibration that ships for a model; None where there is none."""
    folder = resources.files("services.scheduler.planning") / "calibrations"
    file = folder / f"{model_id}.json"
    if "/" in model_id or not file.is_file():
        return None
    return parse(model_id, json.loads(file.read_text("utf-8")))


def parse(model_id: str, plain: dict[str, Any]) -> Calibration:
    """A calibration from its JSON form. Raises ValueError that names what is wrong."""
    rows = plain.get("rows")
    if not isinstance(rows, list) or len(rows) > _MAX_ROWS:
        raise ValueError(f"rows: must be a list of at most {_MAX_ROWS}")
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(_row(row))
        except (KeyError, TypeError, ValueError, ParseError) as error:
            raise ValueError(f"rows[{number}]: {error}") from None
    return Calibration(model_id, tuple(found))


def _row(plain: dict[str, Any]) -> Row:
    edit, sigma = plain["edit"], float(plain["sigma"])
    if edit not in get_args(EditKind):
        raise ValueError(f"edit: {edit!r} is no kind of edit")
    if not 0 < sigma <= 1:
        raise ValueError(f"sigma: must be above 0 and at most 1, not {sigma:g}")
    region, amplification = plain.get("region"), plain.get("amplification")
    return Row(
        edit=edit,
        depth=Depth(
            sigma,
            None if region is None else ParseDict(region, plan_pb2.RegionPlan()),
            None if amplification is None else ParseDict(amplification, plan_pb2.Amplification()),
        ),
        **{name: float(plain[name]) for name in _MEASURED},
        n=int(plain["n"]),
    )


def to_plain(row: Row) -> dict[str, Any]:
    """The JSON form of a row, which `parse` reads; messages as protobuf writes them."""
    messages = {"region": row.depth.region, "amplification": row.depth.amplification}
    return {
        "edit": row.edit,
        "sigma": row.depth.sigma,
        **{
            name: MessageToDict(message, preserving_proto_field_name=True)
            for name, message in messages.items()
            if message is not None
        },
        **{name: getattr(row, name) for name in _MEASURED},
        "n": row.n,
    }
