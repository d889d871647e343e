"""Verifies `chorus explain` against a scheduler that reuses by explicit plans."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2
from chorus_cli.explain.picture import ACTIVE, GAP, HEAD, INACTIVE, LABEL, MARGIN, TILE
from chorus_cli.explain.video import decode_mp4
from chorus_cli.main import app
from chorus_cli.output import Output
from chorus_client import ChorusClient, explicit_reuse
from PIL import Image
from typer.testing import CliRunner

from models.shapes import world
from tests.integration.client.fakes import deployment_in_thread
from tests.integration.evaluation.fakes import GROUPS, UPSCALE, WorldDeployment

GROUP = GROUPS[0]
PLAN = explicit_reuse(1, region_end=3, region="probe", amplify="contrast:0.5")


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorldDeployment]:
    monkeypatch.delenv("CHORUS_TARGET", raising=False)
    monkeypatch.chdir(tmp_path)
    with deployment_in_thread(WorldDeployment) as running:
        yield running


def explain(deployment: WorldDeployment, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["explain", "--target", deployment.target, *arguments])


def reused(deployment: WorldDeployment) -> str:
    """Generation of the group's target that reused its donor by PLAN."""
    with ChorusClient(deployment.target) as client:
        client.generate(GROUP.donor.prompt, seed=1)
        target = client.generate(GROUP.targets[0].prompt, seed=2, explicit_reuse=PLAN)
    return target.generation.id


def count_rows(path: Path) -> int:
    with Image.open(path) as picture:
        return (picture.height - 2 * MARGIN - HEAD + GAP) // (TILE + GAP)


def test_explain_shows_plan_edit_words_reasons_steps_and_seconds(deployment: WorldDeployment) -> None:
    result = explain(deployment, reused(deployment))
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for words in (
        "3 of 4 steps computed, 0.30 s",
        f"prompt {GROUP.targets[0].prompt}",
        "score 0.900, generation gen-1",
        "edit colour",
        "1 of 4 steps reused",
        "steps 2–3: probe, threshold",
        "amplified contrast 0.5",
        "because blue instead of red",
        "+1.5 points predicted",
        "gained tangerine lost mid gray plan",
        "0.30 s predicted, 0.25 s measured",
        "1 reused 2 region 62% 50% 0.100 3 region 62% 50% 0.100 4 full 100% 100% 0.100",
    ):
        assert words in text, text


def test_json_contains_the_same_report(deployment: WorldDeployment) -> None:
    [line] = explain(deployment, reused(deployment), "--json").stdout.splitlines()
    report = json.loads(line)["explanation"]
    assert report["generation"]["plan"]["edit"] == "colour"
    assert [step["kind"] for step in report["steps"]] == ["reused", "region", "region", "full"]
    assert (report["steps"][1]["computed_share"], report["steps"][1]["own_share"]) == (0.625, 0.5)
    assert (report["predicted_seconds_saved"], report["seconds_saved"]) == (0.3, 0.25)


def test_picture_shows_donor_regions_result_and_full_computation(
    deployment: WorldDeployment, tmp_path: Path
) -> None:
    identifier = reused(deployment)
    result = explain(deployment, identifier, "--png", "x.png", "--mp4", "x.mp4", "--full")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert count_rows(tmp_path / "x.png") == 5  # two regions
    videos = deployment.scheduler.videos
    with Image.open(tmp_path / "x.png") as image:
        picture = np.asarray(image.convert("RGB"))

    def tile(row: int, frame: int) -> Any:
        y, x = MARGIN + HEAD + row * (TILE + GAP), MARGIN + LABEL + frame * (TILE + GAP)
        return picture[y : y + TILE, x : x + TILE]

    for row in (1, 2):
        assert (tile(row, 0)[:, : TILE // 2] == ACTIVE).all()
        assert (tile(row, 7)[:, TILE // 2 :] == INACTIVE).all()
    # The full computation was generated now, as the third, of the same seed, and shows what the result does.
    full = deployment.scheduler.generations["gen-3"].spec
    assert (full.prompt, full.seed, full.no_store) == (GROUP.targets[0].prompt, 2, True)
    assert full.reuse == plan_pb2.REUSE_POLICY_OFF
    assert not full.HasField("explicit_reuse")
    assert np.array_equal(tile(3, 4), tile(4, 4))
    # Nearest pixels: the top left one of a tile is the frame's own.
    for row, shown in ((0, "gen-1"), (3, identifier), (4, "gen-3")):
        assert tile(row, 0)[0, 0] == pytest.approx(decode_mp4(videos[shown])[0, 0, 0], abs=1)
    assert len(decode_mp4((tmp_path / "x.mp4").read_bytes())) == world.FRAMES


def test_without_the_full_computation_nothing_is_generated(
    deployment: WorldDeployment, tmp_path: Path
) -> None:
    result = explain(deployment, reused(deployment), "--png", "x.png", "--no-full")
    assert result.exit_code == 0, result.output
    assert count_rows(tmp_path / "x.png") == 4
    assert len(deployment.scheduler.requests) == 2


@pytest.mark.parametrize("answer", ["y", "n"])
def test_full_computation_is_generated_only_after_a_yes_on_a_terminal(
    deployment: WorldDeployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    identifier = reused(deployment)
    result = explain(deployment, identifier, "--png", "x.png")
    assert "the full computation is left out: --full generates it" in result.stderr
    assert len(deployment.scheduler.requests) == 2

    monkeypatch.setattr(Output, "is_interactive", property(lambda out: not out.as_json))
    command = ["explain", "--target", deployment.target, identifier, "--png", "x.png"]
    result = CliRunner().invoke(app, command, input=f"{answer}\n")
    assert result.exit_code == 0, result.output
    assert "Generate the video without reuse (4 steps) for comparison?" in result.stderr
    assert count_rows(tmp_path / "x.png") == (5 if answer == "y" else 4)
    assert len(deployment.scheduler.requests) == (3 if answer == "y" else 2)


def test_donor_without_a_prompt_is_explained_by_the_number_of_tokens(deployment: WorldDeployment) -> None:
    identifier = reused(deployment)
    plan = deployment.scheduler.generations[identifier].plan
    plan.donor.prompt = ""
    plan.gained.add(index=3, weight=1.0)
    result = explain(deployment, identifier)
    assert result.exit_code == 0, result.output
    assert "gained     1 token; the donor's entry does not keep its prompt" in result.stdout
    assert "lost" not in result.stdout


def test_donor_whose_video_is_gone_is_left_out_with_a_note(
    deployment: WorldDeployment, tmp_path: Path
) -> None:
    identifier = reused(deployment)
    del deployment.scheduler.generations["gen-1"]
    result = explain(deployment, identifier, "--png", "x.png", "--full")
    assert result.exit_code == 0, result.output
    assert "the donor's video is left out: no generation 'gen-1'" in result.stderr
    assert count_rows(tmp_path / "x.png") == 4
    result = explain(deployment, identifier, "--png", "x.png", "--no-full", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [next(iter(line)) for line in lines] == ["explanation", "note", "png"]


def test_generation_without_a_donor_is_its_own_full_computation(
    deployment: WorldDeployment, tmp_path: Path
) -> None:
    with ChorusClient(deployment.target) as client:
        client.generate(GROUP.donor.prompt, seed=1)
    result = explain(deployment, "gen-1", "--png", "x.png")
    assert result.exit_code == 0, result.output
    assert "all 4 steps computed" in result.stdout
    assert "donor" not in result.stdout
    assert "nothing was reused" in result.stderr
    assert count_rows(tmp_path / "x.png") == 1
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 8 * TILE
    assert len(deployment.scheduler.requests) == 1


def test_generation_that_failed_is_explained_and_not_drawn(
    deployment: WorldDeployment, tmp_path: Path
) -> None:
    identifier = reused(deployment)
    generation = deployment.scheduler.generations[identifier]
    generation.state = scheduler_pb2.GENERATION_STATE_FAILED
    generation.error.message = "the model produced NaN at step 3"
    generation.ClearField("video")
    del deployment.scheduler.events[identifier][-2:]
    generation.last_sequence -= 2
    result = explain(deployment, identifier, "--png", "x.png")
    assert result.exit_code == 1
    assert "not run" in result.stdout
    assert "NaN at step 3" in result.stdout
    assert f"{identifier} failed" in result.stderr
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gen-9",), "no generation 'gen-9'"),
        (("gen-9", "--png", "no/such/x.png"), "png: the folder"),
        (("gen-9", "--mp4", "no/such/x.mp4"), "mp4: the folder"),
    ],
)
def test_bad_input_is_reported_in_one_line(
    deployment: WorldDeployment, arguments: tuple[str, ...], words: str
) -> None:
    result = explain(deployment, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_region_that_does_not_fit_its_grid_is_reported_as_an_error_of_the_server(
    deployment: WorldDeployment,
) -> None:
    identifier = reused(deployment)
    for event in deployment.scheduler.events[identifier]:
        if event.HasField("step_completed"):
            event.step_completed.token_grid[:] = (9, 9, 9)
    result = explain(deployment, identifier, "--png", "x.png")
    assert result.exit_code == 1
    assert "step 2: active_tokens: must be" in result.stderr


@pytest.mark.parametrize("missing", ["PIL", "av", "numpy"])
def test_without_the_extra_text_is_printed_and_a_picture_is_refused(
    deployment: WorldDeployment, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    identifier = reused(deployment)
    for name in ("chorus_cli.explain.picture", "chorus_cli.explain.video"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert explain(deployment, identifier).exit_code == 0
    result = explain(deployment, identifier, "--png", "x.png")
    assert result.exit_code == 2
    assert "pip install './client[explain]'" in result.stderr


def test_sizes_of_this_file_equal_those_of_the_world() -> None:
    assert TILE >= world.SIDE * UPSCALE  # enlarged, not averaged
