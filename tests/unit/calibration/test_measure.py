"""Verifies the summary of a model's spread over seeds, and the depths that are measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.depths import list_depths
from calibration.measure import summarise_spreads
from services.contract.schedule import shifted_schedule


def test_spread_is_relative_to_full_computation() -> None:
    spreads = [{"full": 10.0, "1 full": 0.0, "3 draft": 5.0}, {"full": 30.0, "1 full": 0.0, "3 draft": 25.0}]
    assert summarise_spreads(spreads) == {"1 full": 0.0, "3 draft": pytest.approx(0.75)}
    assert summarise_spreads([{"full": 1.0, "2 draft": 3.0}]) == {"2 draft": 1.0}
    assert summarise_spreads([{"full": 0.0, "2 draft": 0.0}]) == {"2 draft": 0.0}
    assert summarise_spreads([]) == {}


@given(st.integers(2, 50), st.integers(1, 32))
def test_depths_are_spread_over_the_steps(steps: int, limit: int) -> None:
    sigmas = shifted_schedule(steps, 5.0)
    depths = list_depths(sigmas, limit)
    full = [depth.reuse_steps(sigmas) for name, depth in depths.items() if name.endswith("full")]
    assert full == sorted(set(full))
    assert len(full) == min(limit, steps - 1)
    assert full[-1] == steps - 1
    assert limit == 1 or full[0] == 1
    drafts = [depth for name, depth in depths.items() if name.endswith("draft")]
    assert drafts
    assert all(depth.draft_step(sigmas) == steps - 1 for depth in drafts)


def test_depths_of_four_steps_are_those_of_the_shipped_calibration() -> None:
    assert list(list_depths(shifted_schedule(4, 5.0), 4)) == [
        "1 full",
        "2 full",
        "3 full",
        "2 draft",
        "3 draft",
        "2 contrast",
        "3 contrast",
    ]
