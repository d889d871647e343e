"""Chooses the donor and the extent of reuse: a pure function that returns a plan with its reasons.

If the model has a calibration and the prompts could be compared, the kind of edit decides, by the measured
cost of reuse for that kind; the outcome may be no reuse at all. Otherwise a coarse table of similarities
decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from chorus.common.v1 import plan_pb2

from services.scheduler.planning.calibration import LIMITS, Calibration, Policy, Row
from services.scheduler.planning.edits import OPENING, Edit

# Score at and above which this share of the steps is reused, best first. Text similarity alone is a coarse
# guide: with MiniLM a changed word of motion or size scores up to 0.993, a changed colour about 0.83, a true
# paraphrase down to 0.65. So only near-identical prompts are reused deeply; all others stay shallow.
TABLE: Mapping[Policy, tuple[tuple[float, float], ...]] = {
    "off": (),
    "safe": ((0.999, 0.5), (0.80, 0.25)),
    "balanced": ((0.999, 0.75), (0.75, 0.25)),
    "fast": ((0.999, 0.75), (0.75, 0.5), (0.60, 0.25)),
}
# Upper bound on that share for edits that open something: beyond it nothing is left to decide where it is.
_MAX_OPENING_SHARE = 0.5


@dataclass(frozen=True)
class Donor:
    """Entry found in the cache.

    Attributes:
        score: cosine of the two retrieval vectors.
        steps: indices of the step boundaries whose latents are cached.
        side_data: whether the entry holds attention maps and token states.
        edit: difference between the target and the entry; None if unknown.
        seed: seed of the request that produced the entry; None if unknown.
    """

    entry_id: str
    score: float
    steps: frozenset[int]
    prompt: str = ""
    traceparent: str = ""
    generation_id: str = ""
    side_data: bool = False
    edit: Edit | None = None
    seed: int | None = None

    def holds(self, boundaries: range, side_data: bool) -> bool:
        """Returns whether the entry has the latents of `boundaries`, and side data if `side_data` is true."""
        return self.steps.issuperset(boundaries) and (self.side_data or not side_data)


@dataclass(frozen=True)
class Reason:
    code: plan_pb2.PlanReasonCode.ValueType
    text: str


@dataclass(frozen=True)
class Plan:
    """Plan of a run.

    Attributes:
        reuse_steps: K1; 0 if and only if `donor` is None, `total_steps` for an exact repeat.
        region_end: K2; 0 without a stage 2.
        renoised: whether the run starts from the donor's clean latents, noised again to the level of step K1.
        draft_step: step that is computed first, as a draft that is noised again to the level of step K1; 0
            without a draft.
        predicted_seconds_saved: predicted saving, in seconds; 0 while the seconds of a step are unknown.
        predicted_drift_points: predicted drift, in percentage points; None without a calibration.
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
    draft_step: int = 0


def plan(
    policy: Policy,
    sigmas: Sequence[float],
    donors: Sequence[Donor],
    seconds_per_step: float,
    calibration: Calibration | None = None,
    seed: int | None = None,
    prompt: str = "",
) -> Plan:
    """Chooses the donor and the depth that save most among those that the policy allows.

    A donor that is the full computation of the same prompt and seed is repeated exactly, without a step.
    Among donors of equal use, those of the same seed come first: their latents started from the same noise.

    Args:
        sigmas: the schedule, N + 1 values.
        donors: donors in any order; all under the identity of the request.
        seconds_per_step: seconds of a full step of the model at this shape; 0 if unknown.
        calibration: calibration of the model.
        seed: seed that the request states; None if it states none.
        prompt: prompt of the request.
    """
    total_steps = len(sigmas) - 1
    if policy == "off":
        return compute_in_full(total_steps, plan_pb2.PLAN_REASON_CODE_REUSE_OFF, "the request disabled reuse")
    if not donors:
        return compute_in_full(
            total_steps,
            plan_pb2.PLAN_REASON_CODE_NO_DONOR,
            "the cache holds no similar entry for this model, schedule and shape",
        )
    repeated = [donor for donor in donors if _is_repeat(donor, prompt, seed, total_steps)]
    if repeated:
        return _repeat(total_steps, max(repeated, key=by_similarity), seconds_per_step)
    if calibration is not None and any(donor.edit for donor in donors):
        return _plan_by_calibration(policy, sigmas, donors, seconds_per_step, calibration, seed)
    return _plan_by_score(policy, total_steps, donors, seconds_per_step, seed)


def plan_without_cache(total_steps: int, cause: str) -> Plan:
    """Returns the plan of a job for which the cache could not be used."""
    return compute_in_full(
        total_steps,
        plan_pb2.PLAN_REASON_CODE_CACHE_UNAVAILABLE,
        f"computed in full, because the cache could not be used: {cause}",
    )


def _plan_by_calibration(
    policy: Policy,
    sigmas: Sequence[float],
    donors: Sequence[Donor],
    seconds_per_step: float,
    calibration: Calibration,
    seed: int | None,
) -> Plan:
    """Returns the plan that saves most among the measured rows within the policy's limit."""
    total_steps = len(sigmas) - 1
    options = [
        (donor, row)
        for donor in donors
        if donor.edit is not None
        for row in calibration.allowed(donor.edit.kind, policy)
        if row.depth.reuse_steps(sigmas) > 0
    ]
    usable = [
        (donor, row)
        for donor, row in options
        if donor.holds(row.depth.donor_boundaries(sigmas), row.depth.needs_side_data)
    ]
    if not usable:
        return _decline(policy, total_steps, donors, calibration, bool(options))

    def rank(option: tuple[Donor, Row]) -> tuple[float, float, bool, float, str]:
        donor, row = option
        computed = row.computed_steps(sigmas)
        return -computed, -row.drift_points, _has_seed(donor, seed), *by_similarity(donor)

    donor, row = max(usable, key=rank)
    assert donor.edit is not None
    reuse_steps = row.depth.reuse_steps(sigmas)
    computed = row.computed_steps(sigmas)
    return Plan(
        total_steps=total_steps,
        reuse_steps=reuse_steps,
        donor=donor,
        reasons=(_edit_reason(donor.edit), _row_reason(policy, row, reuse_steps, total_steps, computed)),
        predicted_seconds_saved=(total_steps - computed) * seconds_per_step,
        region_end=total_steps if row.depth.region else 0,
        region=row.depth.region,
        amplification=row.depth.amplification,
        predicted_drift_points=row.drift_points,
        draft_step=row.depth.draft_step(sigmas),
    )


def _decline(
    policy: Policy, total_steps: int, donors: Sequence[Donor], calibration: Calibration, allowed: bool
) -> Plan:
    """Returns the plan without reuse, with the reason that concerns the most similar donor.

    Args:
        allowed: whether the policy allows any depth for the edits at all.
    """
    nearest = max((donor for donor in donors if donor.edit), key=by_similarity)
    assert nearest.edit is not None
    kind = nearest.edit.kind
    if allowed:
        code = plan_pb2.PLAN_REASON_CODE_STEP_NOT_CACHED
        text = "no donor holds the latents or the side data that the allowed depths require"
    elif not calibration.covers(kind):
        code = plan_pb2.PLAN_REASON_CODE_DRIFT_TOO_HIGH
        text = f"no measurement exists for edits of the kind {kind!r}, so they are not reused"
    else:
        code = plan_pb2.PLAN_REASON_CODE_DRIFT_TOO_HIGH
        text = (
            f"no depth measured for edits of the kind {kind!r} stays within the"
            f" {LIMITS.get(policy, 0):g} points of drift and of lost alignment that {policy!r} allows"
        )
    declined = compute_in_full(total_steps, code, text)
    return replace(declined, reasons=(_edit_reason(nearest.edit), *declined.reasons))


def _edit_reason(edit: Edit) -> Reason:
    return Reason(
        plan_pb2.PLAN_REASON_CODE_EDIT,
        f"compared with the donor's prompt, the target {edit.words}: {edit.kind}",
    )


def _row_reason(policy: Policy, row: Row, reuse_steps: int, total_steps: int, computed: float) -> Reason:
    then = "computing the region that differs" if row.depth.region else "computing in full"
    if row.depth.draft_sigma is not None:
        then = f"computing a draft, noising it again and {then}"
    if row.depth.amplification is not None:
        then += ", amplified"
    return Reason(
        plan_pb2.PLAN_REASON_CODE_CALIBRATION,
        f"reusing {reuse_steps} of {total_steps} steps, then {then}: {computed:.2f} steps' worth;"
        f" measured for this kind of edit: drift {row.drift_points:+.1f} points,"
        f" alignment {-row.alignment_loss_points:+.1f} (n = {row.n});"
        f" {policy!r} allows {LIMITS.get(policy, 0):g}",
    )


def _plan_by_score(
    policy: Policy, total_steps: int, donors: Sequence[Donor], seconds_per_step: float, seed: int | None
) -> Plan:
    """Returns the plan with the deepest reuse by the table, among equals with a donor of the same seed, and
    then with the most similar one."""
    most_similar = max(donors, key=by_similarity)
    lowest = TABLE[policy][-1][0]
    if most_similar.score < lowest:
        return compute_in_full(
            total_steps,
            plan_pb2.PLAN_REASON_CODE_SCORE_TOO_LOW,
            f"the best donor's similarity {most_similar.score:.3f} is below {lowest:.2f},"
            f" the minimum of {policy!r}",
        )
    best = max(
        donors,
        key=lambda donor: (
            _reusable_steps(policy, total_steps, donor),
            _has_seed(donor, seed),
            *by_similarity(donor),
        ),
    )
    reuse_steps = _reusable_steps(policy, total_steps, best)
    allowed = _allowed_steps(policy, total_steps, best)
    reasons = [_table_reason(policy, total_steps, best, allowed)]
    if best.edit is not None and best.edit.kind in OPENING:
        reasons.insert(0, _edit_reason(best.edit))
    if reuse_steps < allowed:
        reasons.append(
            Reason(
                plan_pb2.PLAN_REASON_CODE_STEP_NOT_CACHED,
                f"the donor holds no latents after step {allowed};"
                + (
                    f" those after step {reuse_steps} are reused"
                    if reuse_steps
                    else " nor after an earlier one"
                ),
            )
        )
    return Plan(
        total_steps=total_steps,
        reuse_steps=reuse_steps,
        donor=best if reuse_steps else None,
        reasons=tuple(reasons),
        predicted_seconds_saved=reuse_steps * seconds_per_step,
    )


def compute_in_full(total_steps: int, code: plan_pb2.PlanReasonCode.ValueType, text: str) -> Plan:
    """Returns the plan that computes every step, with its reason."""
    return Plan(total_steps, 0, None, (Reason(code, text),), 0.0)


def _is_repeat(donor: Donor, prompt: str, seed: int | None, total_steps: int) -> bool:
    """Returns whether an entry is a full computation, which alone keeps x_1, of this prompt and seed."""
    same = _has_seed(donor, seed) and donor.prompt == prompt != ""
    return same and donor.steps.issuperset((1, total_steps))


def _repeat(total_steps: int, donor: Donor, seconds_per_step: float) -> Plan:
    """Returns the plan that decodes the donor's clean latents."""
    text = "the same prompt was computed in full with the same seed before: its result is repeated"
    return Plan(
        total_steps=total_steps,
        reuse_steps=total_steps,
        donor=donor,
        reasons=(Reason(plan_pb2.PLAN_REASON_CODE_EXACT, text),),
        predicted_seconds_saved=total_steps * seconds_per_step,
    )


def by_similarity(donor: Donor) -> tuple[float, str]:
    """Returns a sort key; the id breaks ties, so that a plan does not depend on the order of the donors."""
    return donor.score, donor.entry_id


def _has_seed(donor: Donor, seed: int | None) -> bool:
    return seed is not None and donor.seed == seed


def _allowed_share(policy: Policy, donor: Donor) -> float:
    """Returns the share of the steps that the table allows to reuse, 0 to 1."""
    share = next((share for threshold, share in TABLE[policy] if donor.score >= threshold), 0.0)
    opens = donor.edit is not None and donor.edit.kind in OPENING
    return min(share, _MAX_OPENING_SHARE) if opens else share


def _allowed_steps(policy: Policy, total_steps: int, donor: Donor) -> int:
    """Returns the largest K1 that the table allows: at least one step is always computed."""
    return min(math.floor(_allowed_share(policy, donor) * total_steps), total_steps - 1)


def _reusable_steps(policy: Policy, total_steps: int, donor: Donor) -> int:
    """Returns the deepest cached step boundary that the table allows; 0 if the donor has none."""
    allowed = _allowed_steps(policy, total_steps, donor)
    return max((step for step in donor.steps if 1 <= step <= allowed), default=0)


def _table_reason(policy: Policy, total_steps: int, donor: Donor, allowed: int) -> Reason:
    return Reason(
        plan_pb2.PLAN_REASON_CODE_SCORE_TABLE,
        f"similarity {donor.score:.3f} allows {policy!r} to reuse {_allowed_share(policy, donor):.0%}"
        f" of the steps: {allowed} of {total_steps}",
    )
