"""Chooses the donor and the extent of reuse: a pure function that returns a plan with its reasons.

If the model has a calibration and the prompts could be compared, the kind of edit decides, by the measured
cost of reuse for that kind; the outcome may be no reuse at all. Otherwise a coarse table of similarities
decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from chorus.common.v1 import plan_pb2

from services.scheduler.planning.by_calibration import plan_by_calibration, why_not_by_calibration
from services.scheduler.planning.by_score import plan_by_score, why_not_by_score
from services.scheduler.planning.calibration import Calibration, Policy
from services.scheduler.planning.plans import (
    Donor,
    PassedOver,
    Plan,
    Reason,
    Request,
    by_similarity,
    compute_in_full,
)


def plan(
    policy: Policy,
    sigmas: Sequence[float],
    donors: Sequence[Donor],
    seconds_per_step: float,
    calibration: Calibration | None = None,
    seed: int | None = None,
    prompt: str = "",
    max_reuse_steps: int = 0,
) -> Plan:
    """Chooses the donor and the depth that save most among those that the policy allows.

    A donor that is the full computation of the same prompt and seed is repeated exactly, without a step; so
    is the earlier result of the same request.
    Among donors of equal use, those of the same seed come first: their latents started from the same noise.
    Other donors are reused only as far as the seed still matters, because a seed asks for a video of its own;
    so does a request without a seed for its donor's own prompt. A request without a seed for an edited prompt
    takes its donor's seed.

    Args:
        sigmas: the schedule, N + 1 values.
        donors: donors in any order; all under the identity of the request.
        seconds_per_step: seconds of a full step of the model at this shape; 0 if unknown.
        calibration: calibration of the model.
        seed: seed that the request states; None if it states none.
        prompt: prompt of the request.
        max_reuse_steps: upper bound on the reused steps that the request states; 0 for none. It does not
            concern exact repeats.
    """
    request = Request(policy, sigmas, seconds_per_step, seed, prompt, max_reuse_steps)
    total_steps = request.total_steps
    if policy == "off":
        return compute_in_full(total_steps, plan_pb2.PLAN_REASON_CODE_REUSE_OFF, "the request disabled reuse")
    if not donors:
        return compute_in_full(
            total_steps,
            plan_pb2.PLAN_REASON_CODE_NO_DONOR,
            "the cache holds no similar entry for this model, schedule and shape",
        )
    repeated = [donor for donor in donors if _answers(request, donor) and is_repeat(donor, total_steps)]
    if repeated:
        return _repeat(request, max(repeated, key=by_similarity))
    if calibration is not None and any(donor.edit for donor in donors):
        chosen = plan_by_calibration(request, donors, calibration)
        explain = partial(why_not_by_calibration, request, calibration=calibration, chosen=chosen)
    else:
        chosen = plan_by_score(request, donors)
        explain = partial(why_not_by_score, request, chosen=chosen)
    others = [donor for donor in donors if donor != chosen.donor]
    passed = (PassedOver(each, explain(each)) for each in sorted(others, key=by_similarity, reverse=True))
    return replace(chosen, passed_over=tuple(passed))


def plan_without_cache(total_steps: int, cause: str) -> Plan:
    """Returns the plan of a job for which the cache could not be used."""
    return compute_in_full(
        total_steps,
        plan_pb2.PLAN_REASON_CODE_CACHE_UNAVAILABLE,
        f"computed in full, because the cache could not be used: {cause}",
    )


def _answers(request: Request, donor: Donor) -> bool:
    """Returns whether an entry was computed for the prompt and the seed that the request states."""
    return request.has_seed_of(donor) and donor.prompt == request.prompt != ""


def is_repeat(donor: Donor, total_steps: int) -> bool:
    """Returns whether an entry of the same prompt and seed holds the result.

    It is that of a full computation, which alone keeps x_1, or the approximation of the same request.
    """
    needed = (total_steps,) if donor.approximation is not None else (1, total_steps)
    return donor.steps.issuperset(needed)


def _repeat(request: Request, donor: Donor) -> Plan:
    """Returns the plan that decodes the donor's clean latents."""
    text = "the same prompt was computed in full with the same seed before: its result is repeated"
    if donor.approximation is not None:
        text = "the same request was answered before, by reusing another donor: its result is repeated"
    return Plan(
        total_steps=request.total_steps,
        reuse_steps=request.total_steps,
        donor=donor,
        reasons=(Reason(plan_pb2.PLAN_REASON_CODE_EXACT, text),),
        predicted_seconds_saved=request.total_steps * request.seconds_per_step,
    )
