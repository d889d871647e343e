"""Rules of a reuse plan that the scheduler and the denoiser must agree on: pure functions on messages."""

from __future__ import annotations

from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2


def effective_region_end(plan: plan_pb2.Plan | scheduler_pb2.ExplicitReuse) -> int:
    """Returns K2: at least K1, and equal to K1 if there is no stage 2 (`region_end` may then be 0)."""
    return max(plan.reuse_steps, plan.region_end)


def donor_boundaries(plan: plan_pb2.Plan | scheduler_pb2.ExplicitReuse, total_steps: int) -> range:
    """Returns the step boundaries whose latents a plan takes from its donor: K1 … K2, or a single one."""
    if plan.reuse_steps == 0:
        return range(0)
    if plan.renoised or plan.draft_step:
        only = plan.draft_step or total_steps
        return range(only, only + 1)
    return range(plan.reuse_steps, effective_region_end(plan) + 1)


def needs_side_data(region: plan_pb2.RegionPlan | None, amplification: plan_pb2.Amplification | None) -> bool:
    """Returns whether a plan reads the donor's attention maps or the token states of its prompt.

    A region by attention reads the maps; contrast with a strength above 0 reads the token states.

    Args:
        region: Region of stage 2; None or an empty message means no stage 2.
        amplification: Amplification of the plan; None or an empty message means none.
    """
    by_attention = region is not None and region.source == plan_pb2.REGION_SOURCE_ATTENTION
    by_contrast = (
        amplification is not None
        and amplification.form == plan_pb2.AMPLIFICATION_FORM_CONTRAST
        and amplification.strength > 0
    )
    return by_attention or by_contrast
