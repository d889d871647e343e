"""Verifies the figures of bench.miss_cost: differences and ratios are paired."""

from __future__ import annotations

import pytest

from bench.miss_cost import Pair, build_figures


def test_figures_compare_each_miss_with_its_own_prompt() -> None:
    pairs = [Pair(1.0, 1.5, 1.0, 2.0), Pair(10.0, 11.0, 10.5, 12.0), Pair(2.0, 2.5, 2.0, 3.0)]
    figures = build_figures(pairs)
    assert figures["off_seconds_p50"].value == 2.0
    assert figures["miss_extra_seconds_p50"].value == 0.5
    assert figures["miss_ratio_p50"].value == pytest.approx(1.25)
    assert figures["miss_extra_busy_seconds_p50"].value == 1.0
    assert {figure.n for figure in figures.values()} == {3}
