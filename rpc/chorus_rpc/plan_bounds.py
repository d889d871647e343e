"""Bounds of reuse, regions and amplification, shared by the client, the scheduler and the denoiser."""

from __future__ import annotations

import math

from chorus.common.v1 import plan_pb2

from chorus_rpc.errors import Violations

MAX_DILATION = 8
"""Upper bound on the dilation of a region, in tokens."""

MAX_STRENGTH = 4.0
"""Upper bound on the strength of an amplification."""

MAX_LAYER = 256
"""Upper bound on the first amplified layer."""

DEFAULT_ATTENTION_THRESHOLD = 0.3
"""Default threshold of regions by attention maps, as a share of the largest attention."""

# Measured on an earlier model, without a host adapter: the source, probing every fourth token, by
# bench/ablation; threshold and dilation by bench/alternatives.
DEFAULT_REGION = plan_pb2.RegionPlan(
    source=plan_pb2.REGION_SOURCE_PROBE,
    threshold=0.02,
    dilation=1,
    budget=0.6,
    context=plan_pb2.REGION_CONTEXT_NONE,
)


def check_depth(
    violations: Violations,
    field: str,
    first: int,
    end: int,
    steps: int,
    renoised: bool = False,
    draft: int = 0,
    exact: bool = False,
) -> None:
    """Validates reuse_steps (K1), region_end (K2), draft_step and `renoised` of a plan of `steps` steps.

    `field` is a prefix with its dot. `exact` permits a plan that reuses every step, without renoising.
    """
    limit = steps if exact and not renoised and not draft else max(steps - 1, 0)
    bound = f"must be 0 to {limit}, {'the' if limit == steps else 'one less than the'} steps, not {first}"
    if violations.require(first <= limit, f"{field}reuse_steps", bound):
        violations.require(
            end == 0 or 0 < first <= end <= steps,
            f"{field}region_end",
            f"must be 0, or reuse_steps = {first} (at least 1) to {steps}, the steps, not {end}",
        )
        # A region reads the donor's own latents of every step, which a renoised path does not have.
        violations.require(
            not renoised or (first > 0 and end <= first),
            f"{field}renoised",
            "may be set only with reuse_steps of at least 1 and without region steps:"
            f" region_end must be 0 or reuse_steps = {first}, not {end}",
        )
        violations.require(
            not draft or (1 <= first <= draft < steps and end <= first and not renoised),
            f"{field}draft_step",
            f"must be 0, or reuse_steps = {first} (at least 1) to {limit}, one less than the steps,"
            f" without region steps and without renoised; not {draft}",
        )


def check_region(violations: Violations, field: str, region: plan_pb2.RegionPlan) -> None:
    """Validates how a plan selects its region."""
    violations.require(
        region.source in plan_pb2.RegionSource.values() and region.source != 0,
        f"{field}.source",
        "must be PROBE, FULL_STEP or ATTENTION",
    )
    violations.require(
        region.context in plan_pb2.RegionContext.values() and region.context != 0,
        f"{field}.context",
        "must be NONE or STRIDED",
    )
    _share(violations, f"{field}.threshold", region.threshold)
    _share(violations, f"{field}.budget", region.budget)
    bound = f"must be 0 to {MAX_DILATION}, not {region.dilation}"
    violations.require(region.dilation <= MAX_DILATION, f"{field}.dilation", bound)


def check_amplification(
    violations: Violations, field: str, amplification: plan_pb2.Amplification, steps: int
) -> None:
    """Validates the amplification of a plan of `steps` steps."""
    violations.require(
        amplification.form in plan_pb2.AmplificationForm.values() and amplification.form != 0,
        f"{field}.form",
        "must be CONTRAST, BIAS or VALUE_GAIN",
    )
    violations.require(
        math.isfinite(amplification.strength) and 0 <= amplification.strength <= MAX_STRENGTH,
        f"{field}.strength",
        f"must be 0 to {MAX_STRENGTH:g}, not {amplification.strength:g}",
    )
    first, last = amplification.first_step, amplification.end_step
    violations.require(
        (first == 0 and last == 0) or first < last <= steps,
        f"{field}.end_step",
        f"must be above first_step = {first} and at most {steps}, the steps, or both 0; not {last}",
    )
    violations.require(
        amplification.first_layer <= MAX_LAYER,
        f"{field}.first_layer",
        f"must be 0 to {MAX_LAYER}, not {amplification.first_layer}",
    )


def _share(violations: Violations, field: str, value: float) -> None:
    violations.require(
        math.isfinite(value) and 0 <= value <= 1, field, f"must be a share, 0 to 1, not {value:g}"
    )
