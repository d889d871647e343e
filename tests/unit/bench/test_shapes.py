"""Tests of the measurement of the model of shapes, on a model that renders instead of generating."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor

from bench import results
from bench.results import Figure, single
from bench.shapes.__main__ import write
from bench.shapes.artefacts import check_video
from bench.shapes.cells import digest, edit_cells, measure_cells
from bench.shapes.comparisons import MEASURES, compare_rivals, describe_outcome, write_verdict
from bench.shapes.figures import reuse_figures
from bench.shapes.sheet import ROWS, describe_edit, draw_sheet
from bench.shapes.workers import Models, Workers
from models.shapes.generate import Draft, Generator, Run
from models.shapes.layout import draw_layout
from models.shapes.measure import Case, Cell, Measurement, draw_other_pairs, measure_case
from models.shapes.render import render
from models.shapes.world import Scene, Thing, scene_table

DONOR = Scene("white", "plain", (Thing("circle", "red", "right", "large", None),))
TARGET = replace(DONOR, things=(replace(DONOR.things[0], colour="blue"),))
CASE = Case(TARGET, torch.tensor([[1.0]]), 3, "colour", DONOR, torch.tensor([[0.0]]))


def draw(scene: Scene, seed: int) -> Tensor:
    table = scene_table([scene])
    return render(table, draw_layout(table, torch.Generator().manual_seed(seed)))[0]


class Renderer:
    """Model whose videos are renders; the seed is kept in the latents. Reuse keeps the donor's layout."""

    def __init__(self, host: bool = True, digest: str = "a") -> None:
        self.runs = 0
        adapter = SimpleNamespace(weights_digest="h") if host else None
        self.model = SimpleNamespace(host=adapter, weights_digest=digest)

    def run(self, states: Tensor, seed: int, steps: int | None = None, host: bool = False) -> Run:
        self.runs += 1
        scene = TARGET if float(states[0, 0]) else DONOR
        video = draw(scene, seed) if steps != 1 else torch.zeros(3, 16, 64, 64)
        return Run(torch.tensor([[float(seed)]]), (video,))

    def reuse(
        self, donor: Run, states: Tensor, level: int, host: bool, contrast: float, draft: Draft | None = None
    ) -> Tensor:
        # Without the adapter the donor stays visible, as a faint copy of the red object.
        seed = int(donor.states[0, 0])
        clean = draw(TARGET, seed)
        return clean if host else torch.lerp(clean, draw(DONOR, seed + 1), 0.3)

    def video(self, latents: Tensor) -> Tensor:
        return latents


def models_of(renderer: Renderer) -> Models:
    return {"student": cast(Generator, renderer)}


@pytest.fixture(scope="module")
def columns() -> dict[str, list[Measurement]]:
    workers = Workers({}, 0)
    workers._models = models_of(Renderer())
    return measure_cells("edits", [CASE], edit_cells, workers, cache=None)


def test_reuse_keeps_the_layout_and_plain_runs_do_not(columns: dict[str, list[Measurement]]) -> None:
    for level in (1, 2, 3):
        assert columns[f"host_k{level}"][0].right["all"]
        assert columns[f"host_k{level}"][0].kept["all"]
        assert not columns[f"host_k{level}"][0].has_artefact
        assert columns[f"base_k{level}"][0].has_artefact
    assert columns["own"][0].right["all"]
    assert not columns["own"][0].kept["all"]
    assert columns["rerun"][0].kept["all"]  # a render of one seed has one layout
    assert not columns["plain_one_step"][0].right["all"]


def test_figures_of_reuse_are_named_by_way_group_and_depth(columns: dict[str, list[Measurement]]) -> None:
    many = {name: column * 4 for name, column in columns.items()}
    truth = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    figures = reuse_figures(many, {"": [0, 1, 2, 3], "opening_": [1], "colour_": []}, truth, ())
    assert figures["host_k3_layout_kept"].value == 1.0
    assert figures["host_opening_k2_alignment_ratio"].n == 1
    assert figures["rerun_layout_kept"].n == 4
    assert figures["plain_one_step_alignment_ratio"].value == 0.0
    assert not any("colour" in name for name in figures)


def test_kept_measurements_are_not_measured_again(tmp_path: Path) -> None:
    renderer = Renderer()
    generator = cast(Generator, renderer)
    calls: list[str] = []

    def cell(name: str, weights: str) -> Cell:
        def generate(case: Case, donor: Run | None) -> Tensor:
            calls.append(name)
            return draw(case.scene, case.seed)

        return Cell(weights, generate)

    path = tmp_path / "row.pt"
    first = measure_case(CASE, {"a": cell("a", "1")}, generator, path)
    again = measure_case(CASE, {"a": cell("a", "1"), "b": cell("b", "1")}, generator, path)
    assert calls == ["a", "b"]
    assert again["a"].right == first["a"].right
    measure_case(CASE, {"a": cell("a", "2")}, generator, path)
    assert calls == ["a", "b", "a"]  # other weights


def test_cases_of_other_words_or_seeds_have_other_files() -> None:
    others = [replace(CASE, seed=4), replace(CASE, states=CASE.states + 1), replace(CASE, donor_states=None)]
    assert len({digest(c) for c in (CASE, *others)}) == 4


def measurement(right: bool, kept: bool, artefact: bool) -> Measurement:
    return Measurement({"all": right}, 0.0, artefact, 1.0, 1.0, torch.zeros(48), {"all": kept})


def test_verdict_says_who_wins_where() -> None:
    good, bad = [measurement(True, True, False)] * 40, [measurement(True, False, True)] * 40
    compared = compare_rivals(
        {"host_k3": good, "rerun_one_step": bad, "base_k3": good},
        {"": range(40), "opening_": range(20)},
        torch.zeros(40, 48),
    )
    assert compared["host_k3_vs_rerun_one_step_kept_points"].value == 100.0
    verdict = write_verdict(compared, {"": "All", "opening_": "Opening"})
    assert len(verdict) == 4
    assert "ties in alignment" in verdict[0]
    assert "wins in artefacts" in verdict[0]
    assert "wins in layout kept" in verdict[0]
    assert "ties in layout kept" in verdict[2]


@pytest.mark.parametrize(
    ("value", "interval", "outcomes"),
    [
        (2.0, (1.5, 2.5), ["wins", "loses", "loses", "wins"]),
        (-2.0, (-2.5, -1.5), ["loses", "wins", "wins", "loses"]),
        (0.5, (-1.0, 2.0), ["ties", "ties", "ties", "ties"]),
    ],
)
def test_outcome_is_a_tie_unless_the_interval_excludes_equality(
    value: float, interval: tuple[float, float], outcomes: Sequence[str]
) -> None:
    figure = Figure(value, "x", 9, interval)
    assert [describe_outcome(figure, m) for m in MEASURES] == outcomes


def test_checks_find_pasted_ghosts_and_no_artefact_in_clean_videos() -> None:
    check = check_video(draw(TARGET, 5), TARGET, 0, ghosts=True)
    assert check.right
    assert not check.found
    assert check.ghosts == (True, True, True)


def test_result_file_keeps_other_parts_and_the_verdict(tmp_path: Path) -> None:
    out = tmp_path / "shapes.json"
    write(out, "first", {"artefact_share": single(0.02, "share")}, ["The host wins."])
    write(out, "second", {"artefact_share_renders": single(0.01, "share")}, [])
    report = results.read(out)
    assert report["figures"]["artefact_ratio"]["value"] == 2.0
    assert report["verdict"] == ["The host wins."]


def _double(_: Models, item: int) -> int:
    return 2 * item


def test_worker_processes_return_results_in_order() -> None:
    with Workers({}, 2) as workers:
        assert workers.map("double", _double, range(5)) == [0, 2, 4, 6, 8]


def test_other_pairs_differ_by_two_edits_or_by_everything() -> None:
    pairs = draw_other_pairs("calibration", 3, 0)
    assert [kind for kind, _, _ in pairs] == ["two_edits"] * 3 + ["unrelated"] * 3
    assert all(donor != target for _, donor, target in pairs)


def test_sheet_has_a_column_for_each_edit(tmp_path: Path) -> None:
    assert describe_edit(CASE) == "colour:\nred to blue"
    workers = Workers({}, 0)
    workers._models = models_of(Renderer())
    draw_sheet([CASE, CASE], workers, tmp_path / "host.png")
    with Image.open(tmp_path / "host.png") as picture:
        assert picture.width > 2 * 2 * 128
        assert picture.height > (len(ROWS) - 2) * 128  # the two distilled students are not there
