"""Measured limits of reuse of one model.

A row states what one depth of reuse cost in quality for one kind of edit, over pairs of prompts of the
calibration split. Depths are noise levels, so that a row means the same for every number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from chorus.common.v1 import plan_pb2

from services.contract.edits import EditKind
from services.contract.reuse import donor_boundaries, needs_side_data

Policy: TypeAlias = Literal["off", "safe", "balanced", "fast"]


@dataclass(frozen=True)
class Limit:
    """Upper bounds of a policy on what reuse may cost against computing in full, in percentage points.

    The standard error counts in full. For alignment and drift it is 3 to 5 points for the seventy pairs of a
    kind that a calibration can afford, so a limit below 5 would allow nothing.

    Attributes:
        points: Loss of alignment, and drift: the share of results that follow the donor, not the request.
        artefact_points: Increase of the share of pixels in artefacts.
    """

    points: float
    artefact_points: float


LIMITS: dict[Policy, Limit] = {"safe": Limit(5, 0.5), "balanced": Limit(8, 1), "fast": Limit(12, 3)}
# Lower bound on the diversity of a depth for requests that ask for a seed of their own.
MIN_DIVERSITY: Final = 0.6


@dataclass(frozen=True)
class Depth:
    """Extent of reuse.

    Attributes:
        sigma: noise level down to which the donor's latents are reused: K1 is the last step boundary that is
            not below it.
        region: rule by which stage 2, which lasts to the end of the run, finds the tokens that it computes;
            None for no stage 2.
        amplification: amplification of the computed steps; None for none.
        draft_sigma: noise level of the donor's latents from which a draft is computed first, at most `sigma`:
            the run starts from the draft, noised again to K1. None for no draft; only without a region.
    """

    sigma: float
    region: plan_pb2.RegionPlan | None = None
    amplification: plan_pb2.Amplification | None = None
    draft_sigma: float | None = None

    def reuse_steps(self, sigmas: Sequence[float]) -> int:
        """Returns K1 for a schedule; 0 if its first step already goes below `sigma`."""
        return _last_boundary(sigmas, self.sigma)

    def draft_step(self, sigmas: Sequence[float]) -> int:
        """Returns the step of the draft for a schedule; 0 without a draft."""
        return 0 if self.draft_sigma is None else _last_boundary(sigmas, self.draft_sigma)

    def donor_boundaries(self, sigmas: Sequence[float]) -> range:
        """Returns the step boundaries whose latents the donor must hold."""
        total = len(sigmas) - 1
        plan = plan_pb2.Plan(
            reuse_steps=self.reuse_steps(sigmas),
            region_end=total if self.region else 0,
            draft_step=self.draft_step(sigmas),
        )
        return donor_boundaries(plan, total)

    def steps_run(self, sigmas: Sequence[float]) -> int:
        """Returns the number of steps that are run, in full or in part, the draft included."""
        return len(sigmas) - 1 - self.reuse_steps(sigmas) + (self.draft_sigma is not None)

    @property
    def needs_side_data(self) -> bool:
        return needs_side_data(self.region, self.amplification)


def _last_boundary(sigmas: Sequence[float], sigma: float) -> int:
    """Returns the last boundary before x_N that is not below a noise level."""
    return max((i for i, s in enumerate(sigmas[:-1]) if s >= sigma - 1e-9), default=0)


@dataclass(frozen=True)
class Row:
    """Measured cost of a depth, for one kind of edit.

    Attributes:
        computed_share: tokens computed in the steps that were run, divided by all tokens of those steps;
            above 1 if the search for the region found that it contains every token.
        drift_points: increase, against computing in full, of the share of results that follow the donor, in
            percentage points.
        alignment_loss_points: decrease of the share of results that show the request, in percentage points.
        error_points: the larger of the two standard errors; counted against the row, so that a row measured
            on few pairs is not trusted.
        artefact_points: increase of the share of pixels in artefacts, in percentage points.
        artefact_error_points: its standard error.
        layout_kept: share of results that keep the donor's layout wherever the prompt did not change, 0 to 1.
        diversity: how much results of one donor differ over seeds in what the prompt leaves open, over how
            much full computations do; 0 if the seed has no effect. Measured for all kinds of edit together.
        n: number of pairs of prompts.
    """

    edit: EditKind
    depth: Depth
    computed_share: float
    drift_points: float
    alignment_loss_points: float
    error_points: float
    artefact_points: float
    artefact_error_points: float
    layout_kept: float
    diversity: float
    n: int

    def computed_steps(self, sigmas: Sequence[float]) -> float:
        """Returns the tokens that are computed, in multiples of a full step."""
        return self.computed_share * self.depth.steps_run(sigmas)

    def within(self, policy: Policy) -> bool:
        """Returns whether the cost stays within the policy's limit."""
        if policy == "off":
            return False
        limit = LIMITS[policy]
        cost = max(self.drift_points, self.alignment_loss_points) + self.error_points
        artefacts = self.artefact_points + self.artefact_error_points
        return cost <= limit.points and artefacts <= limit.artefact_points


@dataclass(frozen=True)
class Calibration:
    """Rows of one model.

    Attributes:
        served_digest: digest of the weights and settings on which they were measured
            (`services.contract.identity.served_digest`).
    """

    model_id: str
    rows: tuple[Row, ...]
    served_digest: str = ""

    def allowed(self, edit: EditKind, policy: Policy) -> list[Row]:
        """Returns the rows for a kind of edit that stay within the policy's limit."""
        return [row for row in self.rows if row.edit == edit and row.within(policy)]

    def covers(self, edit: EditKind) -> bool:
        """Returns whether a kind of edit was measured at all."""
        return any(row.edit == edit for row in self.rows)
