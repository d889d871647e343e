"""How much of which donor to reuse: plain values in, a plan and its reasons out.

Where the model has a calibration and the prompts could be compared, the kind of edit decides, by what reuse
was measured to cost for it; the answer may always be "none". Otherwise a coarse table of similarities does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.plan_bounds import DEFAULT_REGION

from services.contract.reuse import effective_region_end, needs_side_data
from services.scheduler.planning.calibration import LIMITS, Calibration, Policy, Row
from services.scheduler.planning.edits import Edit

# Score at and above which this share of the steps is reused, best first. Text similarity alone is a coarse
# guide: with MiniLM a changed word of motion or size scores up to 0.993, a changed colour about 0.83, a true
# paraphrase down to 0.65. So only what says the same in the same words goes deep; the rest stays shallow.
TABLE: Mapping[Policy, tuple[tuple[float, float], ...]] = {
    "off": (),
    "safe": ((0.999, 0.5), (0.80, 0.25)),
    "balanced": ((0.999, 0.75), (0.75, 0.25)),
    "fast": ((0.999, 0.75), (0.75, 0.5), (0.60, 0.25)),
}


@dataclass(frozen=True)
class Donor:
    """An entry that the cache found.

    Args:
        score: cosine of the two retrieval vectors.
        steps: indices of the step boundaries whose latents are cached.
        side_data: whether it holds its attention maps and token states.
        edit: how the target differs from it; None where that could not be told.
    """

    entry_id: str
    score: float
    steps: frozenset[int]
    prompt: str = ""
    traceparent: str = ""
    generation_id: str = ""
    side_data: bool = False
    edit: Edit | None = None

    def holds(self, first: int, end: int, side_data: bool) -> bool:
        """Whether it has x_first … x_end, and its side data where that is needed."""
        return self.steps.issuperset(range(first, end + 1)) and (self.side_data or not side_data)


@dataclass(frozen=True)
class Reason:
    code: plan_pb2.PlanReasonCode.ValueType
    text: str


@dataclass(frozen=True)
class Plan:
    """What the denoiser is to do.

    Args:
        reuse_steps: K1; 0 exactly when there is no donor.
        region_end: K2; K1 where there is no stage 2.
        renoised: start from the donor's clean latents, noised again to the level of step K1.
        predicted_seconds_saved: 0 where the seconds of a step are not known yet.
        predicted_drift_points: None where no calibration tells.
    """

    total_steps: int
    reuse_steps: int
    donor: Donor | None
    reasons: tuple[Reason, ...]
    predicted_seconds_saved: float
    region_end: int = 0
    region: plan_pb2.RegionPlan | None = None
    amplification: plan_pb2.Amplification | None = None
    predicted_drift_points: float | None = None
    renoised: bool = False


def plan(
    policy: Policy,
    sigmas: Sequence[float],
    donors: Sequence[Donor],
    seconds_per_step: float,
    calibration: Calibration | None = None,
) -> Plan:
    """Chooses the donor and the depth that save most among those that the policy allows.

    Args:
        sigmas: the schedule, N + 1 values.
        donors: in any order; all under the identity of the request.
        seconds_per_step: of a full step of the model at this shape; 0 if unknown.
        calibration: of the model.
    """
    total_steps = len(sigmas) - 1
    if policy == "off":
        return _in_full(total_steps, plan_pb2.PLAN_REASON_CODE_REUSE_OFF, "the request asked for no reuse")
    if not donors:
        return _in_full(
            total_steps,
            plan_pb2.PLAN_REASON_CODE_NO_DONOR,
            "the cache holds nothing similar for this model, schedule and size",
        )
    if calibration is not None and any(donor.edit for donor in donors):
        return _calibrated(policy, sigmas, donors, seconds_per_step, calibration)
    return _by_score(policy, total_steps, donors, seconds_per_step)


def without_cache(total_steps: int, why: str) -> Plan:
    """The plan when the cache could not be asked."""
    return _in_full(
        total_steps,
        plan_pb2.PLAN_REASON_CODE_CACHE_UNAVAILABLE,
        f"computed in full, because the cache could not be asked: {why}",
    )


def explicit(
    wanted: pb.ExplicitReuse, total_steps: int, donors: Sequence[Donor], seconds_per_step: float
) -> Plan:
    """The plan that the request chose itself, with the most similar donor that it fits.

    Args:
        wanted: within its bounds.
    """
    first = wanted.reuse_steps
    end = effective_region_end(wanted)
    region = (wanted.region if wanted.HasField("region") else DEFAULT_REGION) if end > first else None
    amplification = wanted.amplification if wanted.HasField("amplification") else None
    side_data = needs_side_data(region, amplification)
    needed = (total_steps, total_steps) if wanted.renoised else (first, end)
    fitting = [
        donor for donor in donors if donor.score >= wanted.min_score and donor.holds(*needed, side_data)
    ]
    if not fitting:
        latents = (
            f"the clean latents, those after step {total_steps}"
            if wanted.renoised
            else f"latents after steps {first} to {end}"
        )
        return _in_full(
            total_steps,
            plan_pb2.PLAN_REASON_CODE_NO_DONOR,
            f"no entry scores {wanted.min_score:.3f} or more and holds what the request's own plan needs:"
            f" {latents}" + (", and side data" if side_data else ""),
        )
    best = max(fitting, key=lambda donor: (donor.score, donor.entry_id))
    return Plan(
        total_steps=total_steps,
        reuse_steps=first,
        donor=best,
        reasons=(
            Reason(
                plan_pb2.PLAN_REASON_CODE_EXPLICIT,
                f"the request asked to reuse {first} of {total_steps} steps"
                + (", from the donor's clean latents, noised again" if wanted.renoised else "")
                + (f" and to compute a region up to step {end}" if region else ""),
            ),
        ),
        predicted_seconds_saved=first * seconds_per_step,
        region_end=end if region else 0,
        region=region,
        amplification=amplification,
        renoised=wanted.renoised,
    )


def needs_edit(wanted: pb.ExplicitReuse) -> bool:
    """Whether a request's own plan asks what the target gained or lost."""
    by_token = wanted.amplification.form in (
        plan_pb2.AMPLIFICATION_FORM_BIAS,
        plan_pb2.AMPLIFICATION_FORM_VALUE_GAIN,
    )
    return by_token or wanted.region.source == plan_pb2.REGION_SOURCE_ATTENTION


def _calibrated(
    policy: Policy,
    sigmas: Sequence[float],
    donors: Sequence[Donor],
    seconds_per_step: float,
    calibration: Calibration,
) -> Plan:
    """The measured way: of all rows within the policy's limit, the one that saves most."""
    total_steps = len(sigmas) - 1
    options = [
        (donor, row, first)
        for donor in donors
        if donor.edit is not None
        for row in calibration.allowed(donor.edit.kind, policy)
        if (first := row.depth.first_step(sigmas)) > 0
    ]
    usable = [
        (donor, row, first)
        for donor, row, first in options
        if donor.holds(first, total_steps if row.depth.region else first, row.depth.needs_side_data)
    ]
    if not usable:
        return _declined(policy, total_steps, donors, calibration, bool(options))

    def worth(option: tuple[Donor, Row, int]) -> tuple[float, float, float, str]:
        donor, row, first = option
        return -_computed(row, total_steps, first), -row.drift_points, donor.score, donor.entry_id

    donor, row, first = max(usable, key=worth)
    assert donor.edit is not None
    computed = _computed(row, total_steps, first)
    return Plan(
        total_steps=total_steps,
        reuse_steps=first,
        donor=donor,
        reasons=(_edit_reason(donor.edit), _row_reason(policy, row, first, total_steps, computed)),
        predicted_seconds_saved=(total_steps - computed) * seconds_per_step,
        region_end=total_steps if row.depth.region else 0,
        region=row.depth.region,
        amplification=row.depth.amplification,
        predicted_drift_points=row.drift_points,
    )


def _computed(row: Row, total_steps: int, first: int) -> float:
    """Full steps' worth of tokens that a row computes after K1 = `first`."""
    return row.computed_share * (total_steps - first)


def _declined(
    policy: Policy, total_steps: int, donors: Sequence[Donor], calibration: Calibration, allowed: bool
) -> Plan:
    """No reuse, with the reason that concerns the most similar donor."""
    nearest = max((d for d in donors if d.edit), key=lambda donor: (donor.score, donor.entry_id))
    assert nearest.edit is not None
    kind = nearest.edit.kind
    if allowed:
        code = plan_pb2.PLAN_REASON_CODE_STEP_NOT_CACHED
        text = "no donor holds the latents or the side data that the depths allowed would need"
    elif not calibration.knows(kind):
        code = plan_pb2.PLAN_REASON_CODE_DRIFT_TOO_HIGH
        text = f"nothing was measured for edits of the kind {kind!r}; none are reused"
    else:
        code = plan_pb2.PLAN_REASON_CODE_DRIFT_TOO_HIGH
        text = (
            f"no depth measured for edits of the kind {kind!r} stays within the"
            f" {LIMITS.get(policy, 0):g} points of drift and of lost alignment that {policy!r} allows"
        )
    declined = _in_full(total_steps, code, text)
    return replace(declined, reasons=(_edit_reason(nearest.edit), *declined.reasons))


def _edit_reason(edit: Edit) -> Reason:
    return Reason(
        plan_pb2.PLAN_REASON_CODE_EDIT, f"against the donor's prompt the target {edit.words}: {edit.kind}"
    )


def _row_reason(policy: Policy, row: Row, first: int, total_steps: int, computed: float) -> Reason:
    then = "computing the region that differs" if row.depth.region else "computing in full"
    if row.depth.amplification is not None:
        then += ", amplified"
    return Reason(
        plan_pb2.PLAN_REASON_CODE_CALIBRATION,
        f"reusing {first} of {total_steps} steps, then {then}: {computed:.2f} steps' worth; measured for this"
        f" kind of edit: drift {row.drift_points:+.1f} points, alignment {-row.alignment_loss_points:+.1f}"
        f" (n = {row.n}); {policy!r} allows {LIMITS.get(policy, 0):g}",
    )


def _by_score(policy: Policy, total_steps: int, donors: Sequence[Donor], seconds_per_step: float) -> Plan:
    """The donor that allows the deepest reuse by the table, and among equals the most similar one."""
    most_similar = max(donors, key=lambda donor: (donor.score, donor.entry_id))
    lowest = TABLE[policy][-1][0]
    if most_similar.score < lowest:
        return _in_full(
            total_steps,
            plan_pb2.PLAN_REASON_CODE_SCORE_TOO_LOW,
            f"the best donor's similarity {most_similar.score:.3f} is below {lowest:.2f},"
            f" the lowest that {policy!r} reuses",
        )
    best = max(
        donors,
        key=lambda donor: (_depth(policy, total_steps, donor), donor.score, donor.entry_id),
    )
    depth = _depth(policy, total_steps, best)
    allowed = _allowed(policy, total_steps, best.score)
    reasons = [_table_reason(policy, total_steps, best.score, allowed)]
    if depth < allowed:
        reasons.append(
            Reason(
                plan_pb2.PLAN_REASON_CODE_STEP_NOT_CACHED,
                f"the donor holds no latents after step {allowed};"
                + (f" those after step {depth} are taken" if depth else " nor after an earlier one"),
            )
        )
    return Plan(
        total_steps=total_steps,
        reuse_steps=depth,
        donor=best if depth else None,
        reasons=tuple(reasons),
        predicted_seconds_saved=depth * seconds_per_step,
    )


def to_message(plan: Plan) -> plan_pb2.Plan:
    message = plan_pb2.Plan(
        total_steps=plan.total_steps,
        reuse_steps=plan.reuse_steps,
        reasons=[plan_pb2.PlanReason(code=reason.code, text=reason.text) for reason in plan.reasons],
        predicted_seconds_saved=plan.predicted_seconds_saved,
        region_end=plan.region_end,
        region=plan.region,
        amplification=plan.amplification,
        predicted_drift_points=plan.predicted_drift_points or 0.0,
        renoised=plan.renoised,
    )
    if plan.donor is not None:
        message.donor.CopyFrom(
            plan_pb2.DonorRef(
                entry_id=plan.donor.entry_id,
                score=plan.donor.score,
                prompt=plan.donor.prompt,
                traceparent=plan.donor.traceparent,
                generation_id=plan.donor.generation_id,
            )
        )
        if plan.donor.edit is not None:
            edit = plan.donor.edit
            message.edit = edit.kind
            message.gained.extend(plan_pb2.WeightedToken(index=i, weight=w) for i, w in edit.gained)
            message.lost.extend(plan_pb2.WeightedToken(index=i, weight=w) for i, w in edit.lost)
    return message


def _in_full(total_steps: int, code: plan_pb2.PlanReasonCode.ValueType, text: str) -> Plan:
    """The plan that computes every step, and why."""
    return Plan(total_steps, 0, None, (Reason(code, text),), 0.0)


def _share(policy: Policy, score: float) -> float:
    return next((share for threshold, share in TABLE[policy] if score >= threshold), 0.0)


def _allowed(policy: Policy, total_steps: int, score: float) -> int:
    """K1 by the table: at least one step is always computed."""
    return min(math.floor(_share(policy, score) * total_steps), total_steps - 1)


def _depth(policy: Policy, total_steps: int, donor: Donor) -> int:
    """The deepest cached step boundary that the table allows; 0 if there is none."""
    allowed = _allowed(policy, total_steps, donor.score)
    return max((step for step in donor.steps if 1 <= step <= allowed), default=0)


def _table_reason(policy: Policy, total_steps: int, score: float, allowed: int) -> Reason:
    return Reason(
        plan_pb2.PLAN_REASON_CODE_SCORE_TABLE,
        f"similarity {score:.3f} allows {policy!r} to reuse {_share(policy, score):.0%} of the steps:"
        f" {allowed} of {total_steps}",
    )
