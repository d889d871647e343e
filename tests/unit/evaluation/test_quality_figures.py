"""Tests of the figures of artefacts, sharpness, layout, distance and diversity, and of comparisons."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from evaluation import comparisons, distances, quality_figures, results
from evaluation.comparisons import comparison_figures
from evaluation.distances import distance, distance_difference
from evaluation.figures import build_figures
from evaluation.measure import GroupResult, Measurement, Source, Spread, TargetResult
from evaluation.methods import FULL, build_methods
from evaluation.plot import plot
from evaluation.quality import Quality, inspect, measure_spread, read_video, render_scene
from evaluation.quality_figures import diversity_figures
from evaluation.scenes import judge
from evaluation.tables import build_tables
from models.shapes.world import Scene, Thing
from models.shapes.yardstick import classifier
from models.shapes.yardstick.classifier import FEATURES, Classifier
from models.shapes.yardstick.reader import read

RED = Scene("white", "plain", (Thing("circle", "red", "left", "large"),))
BLUE = Scene("white", "plain", (Thing("circle", "blue", "left", "large"),))
GOOD, DRIFTED = judge(RED, RED, BLUE), judge(BLUE, RED, BLUE)
ENOUGH = 500  # videos that determine the covariance of the features
LAYOUT = {"place": True, "heading": True, "texture": True, "objects": True, "all": True}


def quality(number: int = 0, *, artefact: bool = False, kept: bool = True, shift: float = 0.0) -> Quality:
    g = torch.Generator().manual_seed(number)
    features = (torch.randn(FEATURES, generator=g) + shift).tolist()
    return Quality(
        artefact=artefact,
        artefact_share=0.01 * artefact,
        residue=0.02,
        donor_share=0.5 * artefact,
        rims=0.9 if kept else None,
        texture=None,
        layout=LAYOUT | {"place": kept, "all": kept},
        features=tuple(features),
    )


def measurement(
    seconds: float, shown: Quality | None, source: Source = "none", good: bool = True
) -> Measurement:
    verdict = GOOD if good else DRIFTED
    return Measurement(seconds, 4, 4, source, None, verdict, None, None, None, quality=shown)


def targets(n: int, kind: str = "colour") -> list[TargetResult]:
    """Full computation keeps no layout; fast keeps it, with artefacts; steps_1 is wrong and blurred."""
    return [
        TargetResult(
            kind,
            "blue",
            "red",
            i,
            {
                FULL: measurement(4, quality(3 * i, kept=False)),
                "fast": measurement(1, quality(3 * i, artefact=i % 2 == 0), "donor"),
                "steps_1": measurement(1.1, quality(3 * i, kept=False, shift=1.0), good=False),
            },
            opens=i == 0,
            renders=(quality(3 * i + 1).features, quality(3 * i + 2).features),
        )
        for i in range(n)
    ]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (quality_figures, comparisons):
        monkeypatch.setattr(module, "MIN_VIDEOS", ENOUGH)
    monkeypatch.setattr(distances, "_RESAMPLES", 30)


@pytest.mark.usefixtures("few")
def test_figures_contain_every_measure_with_intervals() -> None:
    figures = build_figures([GroupResult(None, tuple(targets(ENOUGH)))], ["fast"])
    assert figures["fast.artefact_rate"] == results.share(ENOUGH // 2, ENOUGH)
    assert figures["fast.artefact_share"].value == pytest.approx(0.005)
    assert figures["fast.donor_share_of_residue"].value == 0.25
    assert figures["fast.sharpness"].value == pytest.approx(0.9)
    assert "full.sharpness" not in figures
    assert "fast.texture_sharpness" not in figures
    assert figures["fast.layout_kept_all"] == results.share(ENOUGH, ENOUGH)
    assert figures["full.layout_kept_all"] == results.share(0, ENOUGH)
    assert figures["fast.single_edit_layout_kept"].value == 1
    assert figures["fast.single_edit_full_layout_kept"].value == 0
    assert figures["steps_1.single_edit_alignment_ratio"].value == 0
    assert figures["full.opening.artefact_rate"].n == 1
    assert figures["fast.distance_excess"].value == 0
    assert figures["steps_1.distance_excess"].value == pytest.approx(1, abs=0.3)
    low, high = figures["steps_1.distance_excess"].ci95 or (0, 0)
    assert 0 < low < high
    assert figures["renders.distance"].value < figures["steps_1.distance"].value


def test_distances_of_few_videos_are_omitted() -> None:
    figures = build_figures([GroupResult(None, tuple(targets(60)))], ["fast"])
    assert not [name for name in figures if "distance" in name]


def test_layout_of_unrelated_prompts_is_not_counted() -> None:
    figures = build_figures([GroupResult(None, tuple(targets(3, "unrelated")))], ["fast"])
    assert figures["fast.artefact_rate"].n == 3
    assert not [name for name in figures if "layout" in name]


@pytest.mark.usefixtures("few")
def test_comparisons_are_paired_over_hits() -> None:
    some = targets(ENOUGH)
    some[0].measurements["fast"] = measurement(9, quality(0), "none")
    hits = ENOUGH - 1
    figures = comparison_figures(some, ["fast"], ["steps_1"])
    assert figures["versus.fast.steps_1.speedup"].value == pytest.approx(1.1)
    assert figures["versus.fast.steps_1.alignment_points"] == results.mean(
        [100.0] * hits, "percentage points"
    )
    assert figures["versus.fast.steps_1.colour.alignment_points"].n == hits
    assert figures["versus.fast.full.layout_points"].value == 100
    assert figures["versus.fast.full.artefact_points"].value == pytest.approx(-100 * (ENOUGH // 2 - 1) / hits)
    assert "versus.fast.full.sharpness" not in figures  # full's videos have no rims
    assert "versus.fast.steps_1.distance" not in figures  # one hit is missing
    more = comparison_figures(targets(ENOUGH), ["fast"], ["steps_1"])
    assert more["versus.fast.steps_1.distance"].value > 0.5


def test_distance_has_an_interval_around_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_RESAMPLES", 50)
    g = torch.Generator().manual_seed(0)
    renders, near = (torch.randn(ENOUGH, FEATURES, generator=g).tolist() for _ in range(2))
    far = (torch.randn(ENOUGH, FEATURES, generator=g) + 0.7).tolist()
    one, other = distance(near, renders), distance(far, renders)
    for figure in (one, other):
        assert figure.ci95 is not None
        assert 0 <= figure.ci95[0] <= figure.value <= figure.ci95[1]
    difference = distance_difference(far, near, renders)
    assert difference.value == pytest.approx(other.value - one.value)
    assert difference.ci95 is not None
    assert difference.ci95[0] > 0
    assert distance_difference(near, near, renders).ci95 == (0, 0)


def test_diversity_is_relative_to_renders_of_the_same_scenes() -> None:
    rendered: dict[str, float | None] = {"place": 4.0, "heading": 1.0, "texture": None, "pixels": 0.04}
    half: dict[str, float | None] = {"place": 1.0, "heading": 0.25, "texture": None, "pixels": 0.01}
    none: dict[str, float | None] = dict.fromkeys(rendered, 0.0)
    spreads = [
        Spread("a", 4, rendered, {FULL: half, "fast": none}),
        Spread("b", 4, rendered, {FULL: half}),
    ]
    figures = diversity_figures(spreads)
    assert figures["full.diversity_mean"].value == pytest.approx(0.5)
    assert (figures["full.diversity_place"].n, figures["fast.diversity_place"].n) == (2, 1)
    assert figures["full.diversity_place"].ci95 == pytest.approx((0.5, 0.5))
    assert figures["fast.diversity_mean"].value == 0
    assert "full.diversity_texture" not in figures


def test_rival_is_a_model_without_reuse() -> None:
    [method] = build_methods([], {}, [], [], {"one-step": "student-1"})
    assert (method.name, method.options, method.reuses) == (
        "one-step",
        {"reuse": "off", "model": "student-1"},
        False,
    )


@pytest.mark.usefixtures("few")
def test_table_of_methods_shows_speed_next_to_quality(tmp_path: Path) -> None:
    figures = build_figures([GroupResult(None, tuple(targets(ENOUGH)))], ["fast"])
    console = Console(width=80)
    with console.capture() as capture:
        console.print(build_tables(figures, [FULL, "fast", "steps_1"], ["colour"]))
    text = capture.get()
    heading = text[text.index("methods, over all kinds") : text.index("steps_1")]
    for word in ("speed-up", "aligned", "facts", "ness", "distance", "less", "full's", "kept"):
        assert word in heading, heading
    for word in ("opening", "renders", "donor's"):
        assert word in text
    assert "…" not in text
    plot(tmp_path / "x.png", figures, [FULL, "fast", "steps_1"], ["colour"])
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = Classifier().eval()
    monkeypatch.setattr(classifier, "load_classifier", lambda: network)


@pytest.mark.usefixtures("untrained")
def test_inspection_measures_a_rendered_video() -> None:
    donor, edited, other = (read(render_scene(s, seed)) for s, seed in ((BLUE, 0), (RED, 0), (RED, 1)))
    found = inspect(edited, RED, donor, BLUE)
    assert not found.artefact
    assert found.layout["all"]
    assert found.rims == pytest.approx(1, abs=0.1)
    assert found.texture is None
    assert len(found.features) == FEATURES
    assert not inspect(other, RED, donor, BLUE).layout["place"]
    spread = measure_spread([edited, other], RED)
    assert spread["texture"] is None
    assert (spread["place"] or 0) > 0


def test_video_of_another_shape_is_not_read() -> None:
    video = ((render_scene(RED, 0).permute(1, 2, 3, 0) + 1) * 127.5).numpy()
    reading = read_video(video)
    assert reading is not None
    assert [t.colour for t in reading.scene.things] == ["red"]
    assert read_video(video[:, :48, :48]) is None
    assert math.isfinite(float(reading.video.mean()))
