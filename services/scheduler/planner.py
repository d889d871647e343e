"""How much of a donor to reuse: plain values in, a plan and its reasons out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from chorus.common.v1 import plan_pb2

Policy: TypeAlias = Literal["off", "safe", "balanced", "fast"]

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
    """

    entry_id: str
    score: float
    steps: frozenset[int]
    prompt: str = ""
    traceparent: str = ""
    generation_id: str = ""


@dataclass(frozen=True)
class Reason:
    code: plan_pb2.PlanReasonCode.ValueType
    text: str


@dataclass(frozen=True)
class Plan:
    """What the denoiser is to do.

    Args:
        full_reuse_steps: K1; 0 exactly when there is no donor.
        predicted_seconds_saved: 0 where the seconds of a step are not known yet.
    """

    total_steps: int
    full_reuse_steps: int
    donor: Donor | None
    reasons: tuple[Reason, ...]
    predicted_seconds_saved: float


def plan(policy: Policy, total_steps: int, donors: Sequence[Donor], seconds_per_step: float) -> Plan:
    """Chooses the donor that allows the deepest reuse, and among equals the most similar one.

    Args:
        total_steps: N, at least 1.
        donors: in any order; all under the identity of the request.
        seconds_per_step: of the model at this shape; 0 if unknown.
    """
    if policy == "off":
        return _in_full(total_steps, plan_pb2.PLAN_REASON_CODE_REUSE_OFF, "the request asked for no reuse")
    if not donors:
        return _in_full(
            total_steps,
            plan_pb2.PLAN_REASON_CODE_NO_DONOR,
            "the cache holds nothing similar for this model, schedule and size",
        )
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
        full_reuse_steps=depth,
        donor=best if depth else None,
        reasons=tuple(reasons),
        predicted_seconds_saved=depth * seconds_per_step,
    )


def without_cache(total_steps: int, why: str) -> Plan:
    """The plan when the cache could not be asked."""
    return _in_full(
        total_steps,
        plan_pb2.PLAN_REASON_CODE_CACHE_UNAVAILABLE,
        f"computed in full, because the cache could not be asked: {why}",
    )


def to_message(plan: Plan) -> plan_pb2.Plan:
    message = plan_pb2.Plan(
        total_steps=plan.total_steps,
        full_reuse_steps=plan.full_reuse_steps,
        reasons=[plan_pb2.PlanReason(code=reason.code, text=reason.text) for reason in plan.reasons],
        predicted_seconds_saved=plan.predicted_seconds_saved,
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
