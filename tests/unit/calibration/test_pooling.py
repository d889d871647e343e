import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.pooling import Estimate, pool

estimates = st.lists(st.builds(Estimate, st.floats(-100, 100), st.floats(0.1, 20)), min_size=1, max_size=12)


def test_equal_estimates_share_their_samples() -> None:
    pooled = pool([Estimate(2.0, 4.0)] * 16)
    assert [e.mean for e in pooled] == pytest.approx([2.0] * 16)
    assert [e.error for e in pooled] == pytest.approx([1.0] * 16)


def test_different_estimates_of_small_error_are_kept() -> None:
    pooled = pool([Estimate(0.0, 0.1), Estimate(50.0, 0.1)])
    assert pooled[0].mean == pytest.approx(0.0, abs=0.01)
    assert pooled[1].mean == pytest.approx(50.0, abs=0.01)


def test_an_uncertain_estimate_moves_further_than_a_certain_one() -> None:
    certain, uncertain, *_ = pool([Estimate(10.0, 1.0), Estimate(10.0, 8.0), *[Estimate(0.0, 1.0)] * 6])
    assert uncertain.mean < certain.mean < 10.0


@given(estimates)
def test_pooled_estimates_lie_between_the_extremes_and_are_no_less_certain(given: list[Estimate]) -> None:
    pooled = pool(given)
    low, high = min(e.mean for e in given), max(e.mean for e in given)
    for before, after in zip(given, pooled, strict=True):
        assert low - 1e-6 <= after.mean <= high + 1e-6
        assert after.error <= before.error + 1e-6


def test_pooling_nothing_returns_nothing() -> None:
    assert pool([]) == []
