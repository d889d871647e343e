"""Verifies noise schedules and the description of invalid ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contract import schedule


@given(st.integers(1, 200), st.floats(0.5, 20))
def test_shifted_schedules_are_valid(steps: int, shift: float) -> None:
    assert schedule.find_schedule_fault(schedule.shifted_schedule(steps, shift)) is None


@pytest.mark.fault("number-promises")
@given(st.integers(1, 200), st.floats(1e-6, 1e6))
def test_every_usual_shift_gives_a_valid_schedule(steps: int, shift: float) -> None:
    assert schedule.find_schedule_fault(schedule.shifted_schedule(steps, shift)) is None


def test_shift_5_gives_the_published_four_step_schedule() -> None:
    assert schedule.shifted_schedule(4, 5) == pytest.approx([1, 0.9375, 5 / 6, 0.625, 0])


@pytest.mark.parametrize(
    "sigmas",
    [
        [],
        [1.0],
        [1.0, 0.5],
        [1.0, 0.5, 0.5, 0.0],
        [0.5, 1.0, 0.0],
        [1.5, 0.0],
        [0.0, 0.0],
        [float("nan"), 0.0],
        [1.0, float("nan"), 0.0],
        [1.0, -0.5, 0.0],
        [1 - i / 400 for i in range(401)],
    ],
)
def test_invalid_schedule_is_explained(sigmas: list[float]) -> None:
    assert schedule.find_schedule_fault(sigmas)
