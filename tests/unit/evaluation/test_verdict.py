"""Tests of the verdict in words."""

from __future__ import annotations

import pytest

from evaluation.results import Figure
from evaluation.verdict import decide, write_verdict


def points(value: float, low: float, high: float, n: int = 200) -> Figure:
    return Figure(value, "percentage points", n, (low, high))


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.1, 9, "wins"),
        (-9, -0.1, "loses"),
        (-4, 5, "ties"),
        (-4, 5.1, "undecided"),
        (-30, 4, "undecided"),
    ],
)
def test_comparison_is_decided_by_its_interval(low: float, high: float, outcome: str) -> None:
    assert decide(points((low + high) / 2, low, high), 5) == outcome
    assert decide(Figure(3, "percentage points", 1), 5) == "undecided"


FIGURES = {
    "fast.single_edit_alignment_ratio": Figure(0.90, "1", 200, (0.86, 0.94)),
    "fast.single_edit_speedup_p50": Figure(3.1, "x", 200, (3.0, 3.2)),
    "steps_1.single_edit_alignment_ratio": Figure(0.4, "1", 200, (0.35, 0.45)),
    "steps_1.single_edit_speedup_p50": Figure(3.6, "x", 200, (3.5, 3.7)),
    "steps_2.single_edit_alignment_ratio": Figure(0.96, "1", 200, (0.93, 0.99)),
    "steps_2.single_edit_speedup_p50": Figure(1.9, "x", 200, (1.8, 2.0)),
    "versus.fast.steps_1.speedup": Figure(0.9, "x", 200, (0.8, 1.0)),
    "versus.fast.steps_1.alignment_points": points(50, 45, 55),
    "versus.fast.steps_1.artefact_points": points(-8, -12, -4),
    "versus.fast.steps_1.layout_points": points(1, -3, 4),
    "versus.fast.steps_1.sharpness": Figure(0.1, "of renders", 200, (-0.1, 0.3)),
    "versus.fast.steps_1.colour.alignment_points": points(60, 40, 80, 25),
    "versus.fast.steps_1.texture.alignment_points": points(3, -20, 26, 25),
    "fast.single_edit_layout_kept": Figure(0.97, "share", 200, (0.94, 0.99)),
    "fast.single_edit_full_layout_kept": Figure(0.12, "share", 200, (0.08, 0.17)),
}


def test_verdict_names_the_fastest_method_at_each_level() -> None:
    lines = write_verdict(FIGURES, ["fast"], ["steps_1", "steps_2"])
    assert lines[0] == (
        "Fastest with at least 95% of full computation's alignment in single edits: steps_2, 1.90× at "
        "96% (93%–99%), though the interval of the latter reaches below 95%."
    )
    assert lines[1].endswith("in single edits: fast, 3.10× at 90% (86%–94%).")
    slow = {**FIGURES, "steps_2.single_edit_speedup_p50": Figure(0.9, "x", 200, (0.8, 0.95))}
    [line, *_] = write_verdict(slow, ["fast"], ["steps_1", "steps_2"])
    assert line == "No method is faster than full computation with 95% of its alignment."


def test_verdict_compares_reuse_with_every_rival() -> None:
    lines = write_verdict(FIGURES, ["fast"], ["steps_1", "steps_2"])
    assert lines[2] == (
        "fast against steps_1, 200 hits, 0.90× its speed: wins in alignment; ties in layout kept; loses in "
        "artefacts; undecided at this n: sharpness. Alignment by kind: wins in colour; undecided at this n: "
        "texture."
    )
    assert len([line for line in lines if "against" in line]) == 1  # steps_2 was not compared


def test_verdict_reports_the_layout_and_what_was_not_measured() -> None:
    lines = write_verdict(FIGURES, ["fast"], ["steps_1", "steps_2"])
    assert lines[3] == (
        "Hits of fast keep the donor's layout where the prompt did not change in 97% (94%–99%) of 200; full "
        "computation of the same requests, from other noise, in 12% (8%–17%)."
    )
    assert lines[4:] == [
        "Not measured, because n is too small or no scene could be read: distance to renders."
    ]


def test_verdict_without_figures_is_empty() -> None:
    assert write_verdict({}, ["fast"], ["steps_1"]) == []
