"""Verifies that the scheduler, which chooses a donor, and the denoiser, which fetches it, agree on a plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc.plan_bounds import DEFAULT_REGION

from services.contract.reuse import effective_region_end, needs_side_data
from services.denoiser.request import DenoiseJob
from services.scheduler.planning.calibration import Depth
from services.scheduler.planning.explicit import plan_explicit
from services.scheduler.planning.plan_message import to_message
from services.scheduler.planning.plans import Donor

CONTRAST = plan_pb2.AMPLIFICATION_FORM_CONTRAST
BIAS = plan_pb2.AMPLIFICATION_FORM_BIAS
BY_ATTENTION = plan_pb2.RegionPlan(source=plan_pb2.REGION_SOURCE_ATTENTION, threshold=0.3, budget=0.6)


def create_job(plan: plan_pb2.Plan) -> DenoiseJob:
    """Returns a job of the denoiser with this plan and otherwise arbitrary values."""
    model: Any = None
    sigmas = (1.0, 0.9, 0.8, 0.5, 0.0)
    states = np.zeros((1, 4), np.float32)
    return DenoiseJob("generation", model, (1, 1, 2, 2), sigmas, 0, states, plan, "encoder", 4, None)


@pytest.mark.parametrize(
    ("reuse_steps", "region_end", "expected"), [(0, 0, 0), (2, 0, 2), (2, 2, 2), (2, 4, 4)]
)
def test_region_ends_at_k1_or_later(reuse_steps: int, region_end: int, expected: int) -> None:
    plan = plan_pb2.Plan(reuse_steps=reuse_steps, region_end=region_end)
    wanted = scheduler_pb2.ExplicitReuse(reuse_steps=reuse_steps, region_end=region_end)
    assert effective_region_end(plan) == effective_region_end(wanted) == expected
    assert create_job(plan).region_end == expected


@pytest.mark.parametrize(
    ("region", "form", "strength", "expected"),
    [
        (None, None, 0.0, False),
        (DEFAULT_REGION, None, 0.0, False),
        (BY_ATTENTION, None, 0.0, True),
        (None, CONTRAST, 0.5, True),
        (None, CONTRAST, 0.0, False),
        (BY_ATTENTION, CONTRAST, 0.0, True),
        (DEFAULT_REGION, BIAS, 1.0, False),
    ],
)
def test_scheduler_and_denoiser_agree_on_side_data(
    region: plan_pb2.RegionPlan | None,
    form: plan_pb2.AmplificationForm.ValueType | None,
    strength: float,
    expected: bool,
) -> None:
    amplification = plan_pb2.Amplification(form=form, strength=strength) if form else None
    plan = plan_pb2.Plan(
        reuse_steps=1, region_end=4 if region else 0, region=region, amplification=amplification
    )
    assert needs_side_data(region, amplification) is expected
    assert Depth(0.9, region, amplification).needs_side_data is expected
    assert create_job(plan).needs_side_data is expected


def test_contrast_of_strength_0_accepts_a_donor_without_side_data() -> None:
    """Covers a former fault: the scheduler rejected such a donor, which the denoiser accepts."""
    donor = Donor("entry", 0.9, frozenset({1, 2, 3, 4}), side_data=False)
    wanted = scheduler_pb2.ExplicitReuse(
        reuse_steps=2, amplification=plan_pb2.Amplification(form=CONTRAST, strength=0.0)
    )
    plan = plan_explicit(wanted, 4, [donor], 1.0)
    assert plan.donor == donor
    assert not create_job(to_message(plan)).needs_side_data
    wanted.amplification.strength = 0.5
    assert plan_explicit(wanted, 4, [donor], 1.0).donor is None
