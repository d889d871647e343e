"""Plans that a request states itself: a pure function that chooses their donor."""

from __future__ import annotations

from collections.abc import Sequence

from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.plan_bounds import DEFAULT_REGION

from services.contract.reuse import donor_boundaries, effective_region_end, needs_side_data
from services.scheduler.planning.plans import Donor, Plan, Reason, by_similarity, compute_in_full


def plan_explicit(
    reuse: pb.ExplicitReuse, total_steps: int, donors: Sequence[Donor], seconds_per_step: float
) -> Plan:
    """Returns the plan that the request itself states, with the most similar donor that fits it.

    Args:
        reuse: a valid explicit reuse.
    """
    reuse_steps = reuse.reuse_steps
    region_end = effective_region_end(reuse)
    has_region = region_end > reuse_steps
    region = (reuse.region if reuse.HasField("region") else DEFAULT_REGION) if has_region else None
    amplification = reuse.amplification if reuse.HasField("amplification") else None
    side_data = needs_side_data(region, amplification)
    needed = donor_boundaries(reuse, total_steps)
    fitting = [donor for donor in donors if donor.score >= reuse.min_score and donor.holds(needed, side_data)]
    if not fitting:
        latents = (
            f"the clean latents, those after step {total_steps}"
            if reuse.renoised
            else f"latents after steps {needed[0]} to {needed[-1]}"
        )
        return compute_in_full(
            total_steps,
            plan_pb2.PLAN_REASON_CODE_NO_DONOR,
            f"no entry has a score of at least {reuse.min_score:.3f} and holds what the request's own plan"
            f" needs: {latents}" + (", and side data" if side_data else ""),
        )
    return Plan(
        total_steps=total_steps,
        reuse_steps=reuse_steps,
        donor=max(fitting, key=by_similarity),
        reasons=(
            Reason(
                plan_pb2.PLAN_REASON_CODE_EXPLICIT,
                f"the request asked to reuse {reuse_steps} of {total_steps} steps"
                + (", from the donor's clean latents, noised again" if reuse.renoised else "")
                + (f", from a draft by step {reuse.draft_step + 1}, noised again" if reuse.draft_step else "")
                + (f" and to compute a region up to step {region_end}" if region else ""),
            ),
        ),
        predicted_seconds_saved=(reuse_steps - bool(reuse.draft_step)) * seconds_per_step,
        region_end=region_end if region else 0,
        region=region,
        amplification=amplification,
        renoised=reuse.renoised,
        draft_step=reuse.draft_step,
    )


def needs_edit(reuse: pb.ExplicitReuse) -> bool:
    """Returns whether a request's own plan depends on the tokens that the target gained or lost."""
    by_token = reuse.amplification.form in (
        plan_pb2.AMPLIFICATION_FORM_BIAS,
        plan_pb2.AMPLIFICATION_FORM_VALUE_GAIN,
    )
    return by_token or reuse.region.source == plan_pb2.REGION_SOURCE_ATTENTION
