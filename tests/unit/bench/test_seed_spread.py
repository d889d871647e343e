"""Verifies the summary of the spread over seeds."""

from __future__ import annotations

import math

import pytest

from bench.in_process import FULL
from bench.seed_spread import summarise_spread
from calibration.depths import depends_on_seed
from services.scheduler.planning.calibration import Depth


def variances(place: float, pixels: float) -> dict[str, float]:
    return {"place": place, "heading": math.nan, "texture": math.nan, "pixels": pixels}


def test_spread_is_relative_to_full_computation_and_pooled_over_targets() -> None:
    spreads = [
        {FULL: variances(4.0, 1.0), "draft": variances(1.0, 0.25), "same": variances(0.0, 0.0)},
        {FULL: variances(12.0, 3.0), "draft": variances(3.0, 0.75), "same": variances(0.0, 0.0)},
    ]
    found = summarise_spread(spreads)
    assert found == {"draft": pytest.approx(0.5), "same": 0.0}


def test_seed_matters_for_drafts_and_for_samplers_that_add_noise() -> None:
    assert depends_on_seed(Depth(0.8, draft_sigma=0.6), "euler")
    assert depends_on_seed(Depth(0.8), "renoise")
    assert not depends_on_seed(Depth(0.8), "euler")
