"""Tests of `chorus eval` against a fake scheduler whose videos depend only on its cache decision."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from chorus.common.v1 import plan_pb2
from chorus_cli import plugins
from chorus_cli.main import app
from typer.testing import CliRunner

from evaluation import distances, measure, quality_figures
from evaluation.pixels import Video
from evaluation.prompts import Group, PromptCase, read_groups, write_groups
from evaluation.quality import read_video
from evaluation.scenes import KINDS, SINGLE_EDITS, list_differences
from models.shapes.world import Scene
from models.shapes.yardstick import classifier
from models.shapes.yardstick.classifier import Classifier
from models.shapes.yardstick.reader import Reading
from tests.integration.client.fakes import deployment_in_thread
from tests.integration.evaluation.fakes import GROUPS, SCENES, WorldDeployment, normalise_spacing

# Enough for tests that look at requests rather than at videos, which take long to read.
FEW = [group for group in GROUPS if group.kind in ("colour", "unrelated")]
OFF = plan_pb2.REUSE_POLICY_OFF


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorldDeployment]:
    for name in ("CHORUS_TARGET", "CHORUS_CACHE_TARGET", "CHORUS_TENANT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = Classifier().eval()  # untrained, so that these tests do not depend on its weights
    monkeypatch.setattr(classifier, "load_classifier", lambda: network)
    readings: dict[bytes, Reading | None] = {}

    def read_once(video: Video) -> Reading | None:
        """Reads equal videos, which most methods serve here, only once."""
        key = video.tobytes()
        if key not in readings:
            readings[key] = read_video(video)
        return readings[key]

    monkeypatch.setattr(measure, "read_video", read_once)
    write_groups(tmp_path / "set.jsonl", GROUPS)
    write_groups(tmp_path / "few.jsonl", FEW)
    with deployment_in_thread(WorldDeployment) as deployment:
        yield deployment


def run_eval(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["eval", "--out", "out", *arguments])


def scenes_of(group: Group) -> tuple[Scene, Scene]:
    donor, target = group.donor.scene, group.targets[0].scene
    assert donor is not None
    assert target is not None
    return donor, target


def read_figures(folder: Path) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = json.loads((folder / "out" / "eval.json").read_text())["figures"]
    return figures


def test_figures_match_the_videos_that_were_served(
    deployment: WorldDeployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_figures, "MIN_VIDEOS", len(GROUPS))
    monkeypatch.setattr(distances, "_RESAMPLES", 20)
    address = deployment.target
    result = run_eval(
        *(
            "--prompts",
            "set.jsonl",
            "--target",
            address,
            "--cache-target",
            address,
            "--empty-cache",
            "--fewer",
            "2",
        ),
        *("--seed", "100", "--target-seed", "other"),
    )
    assert result.exit_code == 0, result.output
    figures = read_figures(tmp_path)
    n = len(GROUPS)
    assert (figures["full.alignment_all"]["value"], figures["full.alignment_all"]["n"]) == (1, n)
    assert figures["full.donor_drift_any"]["value"] == 0
    assert figures["safe.hit_share"]["value"] == 0
    assert "safe.alignment_all" not in figures
    assert figures["balanced.hit_share"]["value"] == figures["balanced.alignment_all"]["value"] == 1
    assert (figures["balanced.psnr_db"]["value"], figures["balanced.seam"]["value"]) == (100, 0)
    # Targets that differ from their donor in what both name, which the videos show.
    different = sum(bool(list_differences(*scenes_of(group))) for group in GROUPS)
    assert (figures["fast.donor_drift_any"]["value"], figures["fast.donor_drift_any"]["n"]) == (1, different)
    assert figures["fast.alignment_all"]["value"] == pytest.approx(1 / n, abs=1e-4)
    assert figures["fast.paraphrase.alignment_all"]["value"] == 1
    assert figures["fast.alignment_loss_all"]["value"] == pytest.approx(100 * (n - 1) / n, abs=1e-4)
    assert figures["fast.colour.alignment_colour"]["value"] == 0
    assert figures["fast.colour.alignment_shape"]["value"] == 1
    assert figures["fast.unrelated.psnr_db"]["value"] < 20
    assert figures["fast.texture.alignment_texture"]["value"] == 0
    assert figures["full.artefact_rate"]["value"] < 0.2  # at twice the size the codec blurs colours
    assert figures["balanced.layout_kept_all"] == figures["full.layout_kept_all"]
    assert figures["fast.layout_kept_place"]["value"] == 1
    assert (
        figures["fast.single_edit_layout_kept"]["value"]
        > figures["fast.single_edit_full_layout_kept"]["value"]
    )
    assert figures["fast.sharpness"]["value"] > 0.8
    assert figures["balanced.distance_excess"]["value"] == 0
    assert figures["fast.distance"]["value"] > 0
    assert figures["renders.distance"]["n"] == n
    assert figures["full.opening.alignment_all"]["n"] in (2, 3)  # texture, place, and count if it adds one
    assert figures["versus.balanced.steps_2.alignment_points"]["value"] == 0
    assert figures["versus.fast.steps_2.alignment_points"]["value"] == -100
    assert figures["versus.fast.steps_2.colour.alignment_points"]["n"] == 1
    assert figures["fast.steps_saved"]["value"] == 1
    assert figures["fast.single_edit_alignment_ratio"]["value"] == 0
    assert figures["balanced.single_edit_alignment_ratio"]["value"] == 1
    assert figures["fast.single_edit_drift_points"] == {
        "value": 100,
        "unit": "percentage points",
        "n": sum(bool(list_differences(*scenes_of(g))) for g in GROUPS if g.kind in SINGLE_EDITS),
        "ci95": [100, 100],
    }
    assert (figures["fast.false_reuse_rate"]["value"], figures["safe.false_reuse_rate"]["value"]) == (1, 0)
    assert figures["steps_2.steps_run"]["value"] == 2
    assert figures["miss.seconds_p50"]["n"] == 2 * n  # donors, and targets by the safe policy
    for name, figure in figures.items():
        assert figure["n"] >= 1, name
        assert (figure["ci95"] is None) == (figure["n"] < 2 and figure["unit"] != "share"), name
    assert (tmp_path / "out" / "eval.png").read_bytes().startswith(b"\x89PNG")
    assert read_groups(tmp_path / "out" / "prompts.jsonl") == GROUPS
    measured = (tmp_path / "out" / "measurements.jsonl").read_text().splitlines()
    assert [json.loads(line)["targets"][0]["kind"] for line in measured] == list(KINDS)
    verdict = json.loads((tmp_path / "out" / "eval.json").read_text())["verdict"]
    assert any(line.startswith("fast against steps_2, 8 hits") for line in verdict)
    assert "verdict" in result.stdout
    assert "hits" in result.stdout
    assert "donor" not in result.stderr  # nothing was excluded


@pytest.mark.parametrize(
    ("choice", "seeds"),
    [
        ("same", [(100, True), (100, True)]),
        ("none", [(100, True), (0, False)]),
        ("other", [(101, True), (101, True)]),
    ],
)
def test_targets_state_the_donors_seed_none_or_another(
    deployment: WorldDeployment, choice: str, seeds: list[tuple[int, bool]]
) -> None:
    """First of the full computation, then of a policy."""
    address = deployment.target
    result = run_eval(
        *("--prompts", "few.jsonl", "--target", address, "--cache-target", address, "--empty-cache"),
        *("--policy", "fast", "--seed", "100", "--target-seed", choice),
    )
    assert result.exit_code == 0, result.output
    prompt = FEW[0].targets[0].prompt
    specs = [r.spec for r in deployment.scheduler.requests if normalise_spacing(r.spec.prompt) == prompt]
    assert [(s.seed, s.HasField("seed")) for s in specs] == seeds


def test_donors_and_targets_have_separate_seeds_and_only_donors_are_stored(
    deployment: WorldDeployment,
) -> None:
    address = deployment.target
    run_eval(
        "--prompts",
        "few.jsonl",
        "--target",
        address,
        "--cache-target",
        address,
        "--empty-cache",
        "--seed",
        "100",
        "--target-seed",
        "other",
    )
    specs = [r.spec for r in deployment.scheduler.requests if normalise_spacing(r.spec.prompt) in SCENES]
    assert len(specs) == 6 * len(FEW)
    for i, group in enumerate(FEW):
        donor, after_admission, *targets = specs[6 * i : 6 * i + 6]
        assert (donor.prompt, donor.seed, donor.no_store) == (group.donor.prompt, 100 + 2 * i, False)
        # After this request no method waits for the admission of the donor's latents.
        assert (
            after_admission.prompt,
            after_admission.no_store,
            after_admission.HasField("explicit_reuse"),
        ) == (
            group.donor.prompt,
            True,
            True,
        )
        assert len({s.prompt for s in targets}) == len(targets), (
            "no target may find its own embedding in the embedder's cache"
        )
        assert {(normalise_spacing(s.prompt), s.seed, s.no_store) for s in targets} == {
            (group.targets[0].prompt, 101 + 2 * i, True)
        }
        assert targets[0].reuse == OFF
    assert [purge.all for purge in deployment.cache.purges] == [True] * len(FEW)


def requested_plans(deployment: WorldDeployment, group: Group) -> list[tuple[int, float]]:
    """Returns reuse_steps and min_score of every explicit plan requested for a group's target, in order."""
    specs = [
        r.spec
        for r in deployment.scheduler.requests
        if normalise_spacing(r.spec.prompt) == group.targets[0].prompt
    ]
    return [
        (s.explicit_reuse.reuse_steps, round(s.explicit_reuse.min_score, 4))
        for s in specs
        if s.HasField("explicit_reuse")
    ]


def test_plans_and_baselines_are_methods_of_the_same_run(deployment: WorldDeployment, tmp_path: Path) -> None:
    address = deployment.target
    deployment.scheduler.score = 0.96
    result = run_eval(
        *("--prompts", "few.jsonl", "--target", address, "--cache-target", address, "--empty-cache"),
        *("--policy", "none", "--baseline", "nirvana", "--baseline", "threshold", "--baseline", "modm"),
        *(
            "--plan",
            "shallow=reuse_steps:1",
            "--plan",
            "deep=reuse_steps:3,region_end:4,region:probe,amplify:contrast:0.5",
        ),
    )
    assert result.exit_code == 0, result.output
    figures = read_figures(tmp_path)
    assert {name.partition(".")[0] for name in figures} == {
        *("full", "shallow", "deep", "nirvana", "threshold", "modm", "miss", "versus")
    }
    assert (figures["shallow.steps_run"]["value"], figures["deep.steps_run"]["value"]) == (3, 1)
    assert figures["shallow.alignment_all"]["value"] == 1
    assert figures["nirvana.steps_run"]["value"] == figures["threshold.steps_run"]["value"] == 2
    assert (
        figures["nirvana.single_edit_hit_share"]["value"] == figures["nirvana.false_reuse_rate"]["value"] == 1
    )
    # The plans' hits report the score, so no probe is needed.
    assert requested_plans(deployment, FEW[0]) == [(1, 0), (3, 0), (2, 0.95), (2, 0.75), (2, 0.75)]
    renoised = [r.spec for r in deployment.scheduler.requests if r.spec.explicit_reuse.renoised]
    assert len(renoised) == len(FEW)
    deep = next(r.spec for r in deployment.scheduler.requests if r.spec.explicit_reuse.reuse_steps == 3)
    assert deep.explicit_reuse.region.source == plan_pb2.REGION_SOURCE_PROBE
    assert deep.explicit_reuse.amplification.strength == 0.5
    assert "reuse" in result.stdout
    assert "verdict" in result.stdout


@pytest.mark.parametrize(
    ("score", "plan", "hits"), [(0.96, (2, 0.95), 1), (0.9, (1, 0.85), 1), (0.84, (1, 0.85), 0)]
)
def test_baseline_without_a_known_score_probes_once_and_discards_the_video(
    deployment: WorldDeployment, tmp_path: Path, score: float, plan: tuple[int, float], hits: int
) -> None:
    address = deployment.target
    deployment.scheduler.score = score
    result = run_eval(
        *("--prompts", "few.jsonl", "--target", address, "--cache-target", address, "--empty-cache"),
        *("--policy", "none", "--baseline", "nirvana"),
    )
    assert result.exit_code == 0, result.output
    for group in FEW:
        assert requested_plans(deployment, group) == [(1, -1), plan]
    figures = read_figures(tmp_path)
    assert figures["nirvana.hit_share"]["value"] == hits
    # A baseline that does not reuse still searches the cache, so it costs a miss.
    assert figures["miss.seconds_p50"]["n"] == len(FEW) * (1 if hits else 2)
    assert figures["full.seconds_p50"]["n"] == len(FEW)
    assert not [name for name in figures if name.startswith("probe")]


def test_cache_of_another_deployment_is_not_emptied(deployment: WorldDeployment, tmp_path: Path) -> None:
    result = run_eval("--prompts", "few.jsonl", "--target", deployment.target, "--policy", "fast", "--json")
    assert result.exit_code == 0, result.output
    assert deployment.cache.purges == []
    donors = {group.donor.prompt for group in FEW}
    specs = [r.spec for r in deployment.scheduler.requests if r.spec.prompt in donors]
    assert {spec.reuse for spec in specs if not spec.HasField("explicit_reuse")} == {OFF}
    assert [g.spec.prompt for g in deployment.scheduler.entries] == [group.donor.prompt for group in FEW]
    assert json.loads(result.stdout)["eval"]["figures"] == read_figures(tmp_path)
    assert "miss.seconds_p50" not in read_figures(tmp_path)  # no donor searched an empty cache


def test_prompts_without_scenes_exclude_alignment_with_a_note(
    deployment: WorldDeployment, tmp_path: Path
) -> None:
    write_groups(
        tmp_path / "own.jsonl",
        [Group("style", PromptCase("a cat"), (PromptCase("a dog"), PromptCase("a cow")))],
    )
    result = run_eval("--prompts", "own.jsonl", "--target", deployment.target, "--policy", "balanced")
    assert result.exit_code == 0, result.output
    assert "alignment and donor drift are excluded: the prompts name no scenes" in result.stderr
    figures = read_figures(tmp_path)
    assert figures["balanced.style.psnr_db"]["n"] == 2
    assert not [name for name in figures if "alignment" in name or "drift" in name]


def test_diversity_is_that_over_seeds_and_rivals_are_other_models(
    deployment: WorldDeployment, tmp_path: Path
) -> None:
    address = deployment.target
    result = run_eval(
        *("--prompts", "few.jsonl", "--target", address, "--cache-target", address, "--empty-cache"),
        *("--policy", "fast", "--rival", "one-step=student-1", "--seeds", "2", "--seed", "100"),
        *("--target-seed", "other"),
    )
    assert result.exit_code == 0, result.output
    figures = read_figures(tmp_path)
    assert figures["full.diversity_mean"]["n"] == len(FEW)
    assert figures["full.diversity_mean"]["value"] > 0.3
    assert figures["fast.diversity_pixels"]["value"] < 0.01  # every seed shows the donor's video
    assert figures["one-step.seconds_p50"]["n"] == 2 * len(FEW)
    assert figures["one-step.single_edit_alignment_ratio"]["value"] == 1
    specs = [r.spec for r in deployment.scheduler.requests]
    assert {s.reuse for s in specs if s.model_id == "student-1"} == {OFF}
    targets = [s.seed for s in specs if normalise_spacing(s.prompt) == FEW[0].targets[0].prompt]
    assert sorted(set(targets)) == [101, 102]
    assert "diver-" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy", "off"), "policy: must be one of safe, balanced, fast, or only none, not 'off'"),
        (("--policy", "none", "--policy", "fast"), "or only none, not 'none'"),
        (("--target-seed", "mine"), "target_seed: must be one of same, none, other, mixed, not 'mine'"),
        (("--seeds", "2"), "seeds: must be 1 unless target_seed is other, not 2"),
        (("--baseline", "chai"), "baseline: must be one of nirvana, threshold, modm, not 'chai'"),
        (
            ("--plan", "reuse_steps:2"),
            "plan: must be NAME=SPEC, such as deep=reuse_steps:2, not 'reuse_steps:2'",
        ),
        (("--plan", "fast=reuse_steps:2"), "plan: the name 'fast' is already in use"),
        (("--plan", "Deep=reuse_steps:2"), "its name must be 1 to 32 characters of"),
        (("--plan", "deep=reuse_steps:0"), "plan: deep: reuse_steps: must be 1 to 199, not 0"),
        (("--rival", "one-step"), "rival: must be NAME=MODEL, such as one-step=my-model, not 'one-step'"),
        (("--rival", "one-step="), "rival: one-step: the id of its model must not be empty"),
        (("--plan", "deep=reuse_steps:2", "--rival", "deep=m"), "rival: the name 'deep' is already in use"),
        (("--seeds", "0"), "--seeds"),
        (("--split", "all"), "split: must be one of train, calibration, test, not 'all'"),
        (("--phrasing", "odd"), "phrasing: must be one of seen, unseen, unseen-words, not 'odd'"),
        (("--empty-cache",), "empty_cache: needs --target and --cache-target"),
        (("--prompts", "absent.jsonl"), "absent.jsonl"),
    ],
)
def test_invalid_option_is_reported_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_eval(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_missing_library_reports_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "evaluation.run", None)
    result = run_eval("--target", "localhost:1")
    assert result.exit_code == 2
    assert "pip install -e ./client -e '.[eval]'" in result.stderr


def test_command_that_cannot_be_loaded_reports_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("eval", "no_such_package.command:evaluate", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    other_app = typer.Typer()
    other_app.command("other")(lambda: None)
    plugins.add_commands(other_app)
    result = CliRunner().invoke(other_app, ["eval", "--pairs", "3"])
    assert result.exit_code == 2
    assert "no_such_package" in result.stderr
    assert "pip install -e ./client -e '.[eval]'" in result.stderr
