"""Tests of figures computed from measurements, their tables and plot, and the statistics."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from evaluation import results
from evaluation.figures import build_figures
from evaluation.measure import GroupResult, Measurement, Source, TargetResult
from evaluation.methods import FULL, build_methods
from evaluation.plot import plot
from evaluation.prompts import Group, PromptCase
from evaluation.run import list_exclusions
from evaluation.scenes import Verdict, judge
from evaluation.tables import build_tables
from models.shapes.world import Scene, Thing

RED = Scene("navy", "plain", (Thing("circle", "red", "left", "small"),))
BLUE = Scene("navy", "plain", (Thing("circle", "blue", "left", "small"),))
GOOD, DRIFTED = judge(RED, RED, BLUE), judge(BLUE, RED, BLUE)


def measurement(
    seconds: float,
    steps: int,
    source: Source = "none",
    verdict: Verdict | None = GOOD,
    psnr: float | None = 30,
) -> Measurement:
    likeness = None if psnr is None else psnr / 100
    return Measurement(
        seconds, steps, 4, source, None if source == "none" else 0.9, verdict, psnr, likeness, likeness
    )


def target(kind: str, fast: Measurement, full: Verdict | None = GOOD) -> TargetResult:
    return TargetResult(
        kind, "blue", "red", 1, {FULL: measurement(2, 4, verdict=full, psnr=None), "fast": fast}
    )


TARGETS = [
    target("colour", measurement(1, 2, "donor", DRIFTED, psnr=20)),
    target("colour", measurement(1, 2, "donor", GOOD, psnr=40)),
    target("colour", measurement(2.2, 4, "none", GOOD)),
    target("unrelated", measurement(0.5, 1, "other", DRIFTED, psnr=5)),
]
GROUP_RESULTS = [GroupResult(2.4, tuple(TARGETS[:2])), GroupResult(None, tuple(TARGETS[2:]))]


def test_quality_of_reuse_counts_only_hits_of_the_own_donor() -> None:
    figures = build_figures(GROUP_RESULTS, ["fast"])
    assert figures["fast.hit_share"] == results.share(2, 3)
    assert figures["fast.alignment_colour"] == results.share(1, 2)
    assert figures["fast.alignment_background"] == results.share(2, 2)
    assert figures["fast.alignment_loss_colour"].value == 50
    assert figures["fast.donor_drift_colour"] == figures["fast.donor_drift_any"] == results.share(1, 2)
    assert figures["fast.psnr_db"].value == 30
    assert figures["fast.ssim"].value == figures["fast.seam"].value == pytest.approx(0.3)
    assert figures["fast.seconds_p50"] == results.Figure(1, "s", 2, (1, 1))
    assert figures["fast.steps_saved"].value == 2
    assert figures["fast.speedup_p50"].value == 2


def test_whole_set_speedup_includes_misses() -> None:
    figures = build_figures(GROUP_RESULTS, ["fast"])
    assert figures["fast.whole_set_speedup"].value == pytest.approx(6 / 4.2)
    assert figures["miss.seconds_p50"] == results.median([2.4, 2.2], "s")


def test_single_edits_are_split_by_the_seed_that_requests_stated() -> None:
    hit, miss = measurement(1, 2, "donor"), measurement(2.2, 4)
    split = [
        replace(target("colour", hit), seed_choice="same"),
        replace(target("shape", miss), seed_choice="none"),
        replace(target("shape", miss), seed_choice="other"),
        replace(target("unrelated", hit), seed_choice="other"),
    ]
    figures = build_figures([GroupResult(None, tuple(split))], ["fast"])
    shares = {name: figures[f"fast.seed_{name}.single_edit_hit_share"] for name in ("same", "none", "other")}
    assert shares == {"same": results.share(1, 1), "none": results.share(0, 1), "other": results.share(0, 1)}
    assert figures["fast.seed_kept.single_edit_hit_share"] == results.share(1, 2)
    assert figures["fast.seed_kept.whole_set_speedup"].value == pytest.approx(4 / 3.2)
    assert not [name for name in build_figures(GROUP_RESULTS, ["fast"]) if ".seed_" in name]


def test_full_computation_counts_every_target_and_has_no_likeness_to_itself() -> None:
    figures = build_figures(GROUP_RESULTS, ["fast"])
    assert figures["full.alignment_all"] == results.share(4, 4)
    assert figures["full.donor_drift_any"] == results.share(
        0, 4
    )  # the model's own mistakes, made without a donor
    assert figures["full.seconds_p50"].n == 4
    assert not {"full.psnr_db", "full.speedup_p50", "full.alignment_loss_all"} & set(figures)


def test_figures_are_separate_by_kind_and_omitted_without_measurements() -> None:
    figures = build_figures(GROUP_RESULTS, ["fast"])
    assert figures["fast.colour.hit_share"].n == 3
    assert "full.unrelated.seconds_p50" in figures
    assert not [name for name in figures if name.startswith("fast.unrelated")]
    assert "fast.donor_drift_motion" not in figures


def test_method_without_reuse_counts_every_target() -> None:
    [method] = build_methods([], {}, [], [3])
    assert method.options == {"reuse": "off", "steps": 3}
    assert not method.reuses
    targets = [
        TargetResult(
            "colour", "d", "t", i, {FULL: measurement(2, 4, psnr=None), method.name: measurement(1.5, 3)}
        )
        for i in (1, 2)
    ]
    figures = build_figures([GroupResult(None, tuple(targets))], [])
    assert figures["steps_3.psnr_db"].n == 2
    assert figures["steps_3.speedup_p50"].value == pytest.approx(4 / 3)
    assert figures["steps_3.single_edit_speedup_p50"].n == 2
    assert "steps_3.hit_share" not in figures
    assert "miss.seconds_p50" not in figures


def test_single_edits_are_compared_with_the_full_computation_of_the_same_requests() -> None:
    targets = [
        target("colour", measurement(1, 2, "donor", DRIFTED)),
        target("count", measurement(0.5, 2, "donor", GOOD)),
        target("size", measurement(1, 2, "donor", DRIFTED), full=DRIFTED),  # the model's own mistake
        target("motion", measurement(2.2, 4, "none", GOOD)),
        target("shape", measurement(0.1, 2, "other", DRIFTED)),
        target("two_edits", measurement(0.1, 2, "donor", DRIFTED)),
        target("unrelated", measurement(0.1, 2, "donor", DRIFTED)),
    ]
    figures = build_figures([GroupResult(None, tuple(targets))], ["fast"])
    assert figures["fast.single_edit_hit_share"] == results.share(3, 4)
    assert figures["fast.single_edit_speedup_p50"] == results.median([2, 4, 2], "x")
    ratio = figures["fast.single_edit_alignment_ratio"]
    assert (ratio.value, ratio.n) == (0.5, 3)  # one of the two whose full computation is right
    assert ratio.ci95 is not None
    assert 0 <= ratio.ci95[0] <= 0.5 <= ratio.ci95[1]
    drift = figures["fast.single_edit_drift_points"]
    assert drift == results.mean([100, 0, 0], "percentage points")
    assert figures["fast.false_reuse_rate"] == results.share(1, 1)
    assert not [name for name in figures if name.startswith("full.single_edit")]
    assert figures["versus.fast.full.alignment_points"].n == 3


def test_single_edit_and_false_reuse_figures_are_omitted_without_such_requests() -> None:
    figures = build_figures([GroupResult(None, (target("style", measurement(1, 2, "donor")),))], ["fast"])
    assert not [name for name in figures if "single_edit" in name or "false_reuse" in name]
    missed = build_figures([GroupResult(None, (target("colour", measurement(2, 4)),))], ["fast"])
    assert missed["fast.single_edit_hit_share"].value == 0
    assert "fast.single_edit_drift_points" not in missed
    never = [target("colour", measurement(1, 2, "donor", DRIFTED), full=DRIFTED)]
    assert "fast.single_edit_alignment_ratio" not in build_figures(
        [GroupResult(None, tuple(never))], ["fast"]
    )


def test_prompts_without_scenes_keep_fidelity_and_seconds() -> None:
    targets = [target("style", measurement(1, 3, "donor", None), full=None)]
    figures = build_figures([GroupResult(None, tuple(targets))], ["fast"])
    assert {"fast.psnr_db", "fast.seconds_p50", "full.seconds_p50"} <= set(figures)
    assert not [name for name in figures if "alignment" in name or "drift" in name]


def test_exclusions_are_listed_with_their_reason() -> None:
    nameless = [Group("style", PromptCase("a"), (PromptCase("b"),))]
    assert (
        list(list_exclusions([Group("colour", PromptCase("a", RED), (PromptCase("b", BLUE),))], TARGETS[:3]))
        == []
    )
    [line] = list_exclusions(nameless, [target("style", measurement(1, 3, "donor", None), full=None)])
    assert "the prompts name no scenes" in line
    [line] = list_exclusions(
        [Group("colour", PromptCase("a", RED), (PromptCase("b", BLUE),))],
        [target("colour", measurement(1, 3, "donor", None), None)],
    )
    assert "16 frames of 64 × 64" in line
    [line] = list_exclusions(nameless, TARGETS)
    assert line.startswith("1 requests reused another donor")


def test_tables_show_each_value_with_its_interval() -> None:
    figures = build_figures(GROUP_RESULTS, ["fast"])
    console = Console(width=160)
    with console.capture() as capture:
        console.print(build_tables(figures, [FULL, "fast"], ["colour", "unrelated"]))
    text = capture.get()
    for words in ("hits", "67%", "21%–94%", "unrelated", "miss", "attribute", "50% of 2", "9%–91%"):
        assert words in text, text
    assert "None" not in text


@pytest.mark.parametrize("verdict", [GOOD, None])
def test_plot_is_drawn_with_and_without_scenes(tmp_path: Path, verdict: Verdict | None) -> None:
    targets = [
        target("colour", measurement(1, 2, "donor", verdict), full=verdict),
        target("size", measurement(2, 4), full=verdict),
    ]
    figures = build_figures([GroupResult(2.0, tuple(targets))], ["fast"])
    plot(tmp_path / "x.png", figures, [FULL, "fast"], ["colour", "size"])
    with Image.open(tmp_path / "x.png") as image:
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_contains_the_share_and_stays_in_0_to_1(counts: tuple[int, int]) -> None:
    hits, n = counts
    figure = results.share(hits, n)
    assert figure.ci95 is not None
    low, high = figure.ci95
    assert 0 <= low <= figure.value <= high <= 1
    assert high - low <= 2 * 1.96 * math.sqrt(0.25 / n) + 1e-9
    mirrored = results.share(n - hits, n).ci95
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_wilson_interval_matches_a_published_value() -> None:
    assert results.share(10, 10).ci95 == pytest.approx((0.7225, 1.0), abs=1e-4)  # Wilson 1927
    with pytest.raises(ValueError, match="hits"):
        results.share(2, 1)
    with pytest.raises(ValueError, match="hits"):
        results.share(0, 0)


def test_mean_and_ratio_have_expected_intervals() -> None:
    values = [float(v) for v in range(100)]
    figure = results.mean(values, "s")
    assert figure.value == 49.5
    assert figure.ci95 is not None
    low, high = figure.ci95
    expected = 1.96 * math.sqrt(sum((v - 49.5) ** 2 for v in values) / 100) / 10
    assert (low, high) == pytest.approx((49.5 - expected, 49.5 + expected), abs=0.2)
    twice = results.ratio([2 * v for v in values], values)
    assert twice.value == 2
    assert twice.ci95 == pytest.approx((2, 2))
    assert results.mean([3.0], "s") == results.single(3.0, "s")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_ratio_ignores_draws_whose_denominators_are_all_zero(pairs: list[tuple[bool, bool]]) -> None:
    pairs = [*pairs, (True, True)]
    figure = results.ratio([a for a, _ in pairs], [b for _, b in pairs])
    assert figure.value == sum(a for a, _ in pairs) / sum(b for _, b in pairs)
    assert figure.ci95 is not None
    assert all(math.isfinite(bound) for bound in figure.ci95)


def test_commit_is_null_outside_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "ROOT", tmp_path)
    results.write(tmp_path / "x.json", "x", {})
    assert json.loads((tmp_path / "x.json").read_text())["commit"] is None
