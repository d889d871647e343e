"""The message of a plan, and the seed of its run. All functions are pure."""

from __future__ import annotations

from typing import Final

from chorus.common.v1 import plan_pb2

from services.scheduler.planning.plans import PassedOver, Plan

# Upper bound on the prompt of a donor that is not reused: a job stores its plan.
_MAX_PROMPT_CHARACTERS: Final = 200


def to_message(plan: Plan) -> plan_pb2.Plan:
    """Returns the protobuf message of a plan."""
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
        draft_step=plan.draft_step,
        passed_over=map(_to_passed_over, plan.passed_over),
    )
    if plan.donor is not None:
        message.donor.CopyFrom(
            plan_pb2.DonorRef(
                entry_id=plan.donor.entry_id,
                score=plan.donor.score,
                prompt=plan.donor.prompt,
                traceparent=plan.donor.traceparent,
                generation_id=plan.donor.generation_id,
                seed=plan.donor.seed,
                approximation=plan.donor.approximation,
            )
        )
        if plan.donor.edit is not None:
            edit = plan.donor.edit
            message.edit = edit.kind
            message.gained.extend(plan_pb2.WeightedToken(index=i, weight=w) for i, w in edit.gained)
            message.lost.extend(plan_pb2.WeightedToken(index=i, weight=w) for i, w in edit.lost)
    return message


def _to_passed_over(passed: PassedOver) -> plan_pb2.PassedOver:
    donor = passed.donor
    return plan_pb2.PassedOver(
        generation_id=donor.generation_id,
        score=donor.score,
        prompt=donor.prompt[:_MAX_PROMPT_CHARACTERS],
        seed=donor.seed,
        edit=donor.edit.kind if donor.edit else "",
        reason=passed.reason,
    )


def choose_seed(plan: plan_pb2.Plan, seed: int, chosen: bool, prompt: str) -> int:
    """Returns the seed of the full computation that a run of `plan` performs or approximates.

    It is the donor's if the server chose the seed itself: the result continues the donor's noise. A renoised
    run starts from noise of its own, and so does another video of the donor's own prompt, which only a plan
    with a draft or one of the planner gives: other explicit plans continue the donor's noise.

    Args:
        seed: seed of the accepted specification.
        chosen: whether the server chose it.
        prompt: prompt of the request.
    """
    explicit = any(reason.code == plan_pb2.PLAN_REASON_CODE_EXPLICIT for reason in plan.reasons)
    continues = explicit and not plan.draft_step
    same = not continues and (plan.donor.prompt == prompt or plan.edit == "same")
    has_donor = plan.reuse_steps > 0 and plan.donor.HasField("seed")
    takes_donors = chosen and has_donor and not plan.renoised and not same
    return plan.donor.seed if takes_donors else seed
