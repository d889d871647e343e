"""Verifies the figures of bench.cpu_backend: CPU time of each round is compared with torch's."""

from __future__ import annotations

import pytest

from bench.cpu_backend import build_figures


def test_ratios_compare_the_cpu_time_of_each_round_with_torch() -> None:
    seconds = {
        ("torch", "full"): [(1.0, 0.5), (9.0, 1.0), (2.0, 2.0)],
        ("onnxruntime", "full"): [(8.0, 0.25), (8.0, 0.7), (8.0, 1.8)],
    }
    figures = build_figures(seconds, {"onnxruntime": (1e-6, 2e-6)})
    assert figures["torch_full_seconds_p50"].value == 2.0
    assert figures["onnxruntime_full_seconds_p50"].value == 8.0
    assert figures["onnxruntime_full_cpu_ratio_p50"].value == pytest.approx(0.7)
    assert "torch_full_cpu_ratio_p50" not in figures
    assert figures["onnxruntime_rel_l2"].value == 1e-6
    assert figures["onnxruntime_rel_max"].value == 2e-6
