"""Verifies the figures of bench.step_previews: each run with pictures is compared with its own without."""

from __future__ import annotations

import pytest

from bench.step_previews import Run, build_figures


def test_figures_compare_each_prompt_with_itself() -> None:
    pairs = [
        (Run(1.0, 0.2, ()), Run(1.1, 0.2, (100, 300))),
        (Run(10.0, 2.0, ()), Run(10.4, 2.0, (200, 200))),
        (Run(2.0, 0.4, ()), Run(2.3, 0.4, (200, 200))),
    ]
    figures = build_figures(pairs)
    assert figures["plain_seconds_p50"].value == 2.0
    assert figures["extra_seconds_per_step_p50"].value == pytest.approx(0.15)
    assert figures["seconds_ratio_p50"].value == pytest.approx(1.1)
    assert (figures["picture_bytes_p50"].value, figures["picture_bytes_p50"].n) == (200, 6)
