"""`chorus eval` against a scheduler whose videos show just what its cache decision makes them show."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import typer
from chorus.common.v1 import plan_pb2
from chorus_cli import plugins
from chorus_cli.main import app
from typer.testing import CliRunner

from evaluation.prompts import Ask, Group, read_groups, write_groups
from evaluation.scenes import KINDS, SINGLE_EDITS
from tests.integration.client.fakes import deployment_in_thread
from tests.integration.evaluation.fakes import GROUPS, SCENES, WorldDeployment, words

OFF = plan_pb2.REUSE_POLICY_OFF


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorldDeployment]:
    for name in ("CHORUS_TARGET", "CHORUS_CACHE_TARGET", "CHORUS_TENANT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    write_groups(tmp_path / "set.jsonl", GROUPS)
    with deployment_in_thread(WorldDeployment) as made:
        yield made


def evaluate(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["eval", "--out", "found", *arguments])


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((folder / "found" / "eval.json").read_text())["figures"]
    return found


def test_the_figures_are_those_of_what_was_shown(deployment: WorldDeployment, tmp_path: Path) -> None:
    at = deployment.target
    result = evaluate(
        *("--prompts", "set.jsonl", "--target", at, "--cache-target", at, "--empty-cache", "--fewer", "2"),
        *("--seed", "100"),
    )
    assert result.exit_code == 0, result.output
    found = figures(tmp_path)
    n = len(GROUPS)
    assert (found["full.alignment_all"]["value"], found["full.alignment_all"]["n"]) == (1, n)
    assert found["full.donor_drift_any"]["value"] == 0
    assert found["safe.hit_share"]["value"] == 0
    assert "safe.alignment_all" not in found
    assert found["balanced.hit_share"]["value"] == found["balanced.alignment_all"]["value"] == 1
    assert (found["balanced.psnr_db"]["value"], found["balanced.seam"]["value"]) == (100, 0)
    # All but the paraphrase differ from their donor, and show it.
    assert (found["fast.donor_drift_any"]["value"], found["fast.donor_drift_any"]["n"]) == (1, n - 1)
    assert found["fast.alignment_all"]["value"] == 1 / n
    assert found["fast.paraphrase.alignment_all"]["value"] == 1
    assert found["fast.alignment_loss_all"]["value"] == 100 * (n - 1) / n
    assert found["fast.colour.alignment_colour"]["value"] == 0
    assert found["fast.colour.alignment_shape"]["value"] == 1
    assert found["fast.unrelated.psnr_db"]["value"] < 20
    assert found["fast.steps_saved"]["value"] == 1
    assert found["fast.single_edit_alignment_ratio"]["value"] == 0
    assert found["balanced.single_edit_alignment_ratio"]["value"] == 1
    assert found["fast.single_edit_drift_points"] == {
        "value": 100,
        "unit": "percentage points",
        "n": len(SINGLE_EDITS),
        "ci95": [100, 100],
    }
    assert (found["fast.false_reuse_rate"]["value"], found["safe.false_reuse_rate"]["value"]) == (1, 0)
    assert found["steps_2.steps_run"]["value"] == 2
    assert found["miss.seconds_p50"]["n"] == 2 * n  # donors, and targets by the safe policy
    for name, figure in found.items():
        assert figure["n"] >= 1, name
        assert (figure["ci95"] is None) == (figure["n"] < 2 and figure["unit"] != "share"), name
    assert (tmp_path / "found" / "eval.png").read_bytes().startswith(b"\x89PNG")
    assert read_groups(tmp_path / "found" / "prompts.jsonl") == GROUPS
    measured = (tmp_path / "found" / "measurements.jsonl").read_text().splitlines()
    assert [json.loads(line)["cases"][0]["kind"] for line in measured] == list(KINDS)
    assert "hits" in result.stdout
    assert "donor" not in result.stderr  # nothing was left out


def test_donors_and_targets_have_seeds_of_their_own_and_only_donors_are_stored(
    deployment: WorldDeployment,
) -> None:
    at = deployment.target
    evaluate("--prompts", "set.jsonl", "--target", at, "--cache-target", at, "--empty-cache", "--seed", "100")
    specs = [r.spec for r in deployment.scheduler.requests if words(r.spec.prompt) in SCENES]
    assert len(specs) == 6 * len(GROUPS)
    for i, group in enumerate(GROUPS):
        donor, settled, *targets = specs[6 * i : 6 * i + 6]
        assert (donor.prompt, donor.seed, donor.no_store) == (group.donor.prompt, 100 + 2 * i, False)
        # Behind it nobody waits for the donor's latents to be kept.
        assert (settled.prompt, settled.no_store, settled.HasField("explicit_reuse")) == (
            group.donor.prompt,
            True,
            True,
        )
        assert len({s.prompt for s in targets}) == len(targets), "none finds its own embedding in memory"
        assert {(words(s.prompt), s.seed, s.no_store) for s in targets} == {
            (group.targets[0].prompt, 101 + 2 * i, True)
        }
        assert targets[0].reuse == OFF
    assert [purge.all for purge in deployment.cache.purges] == [True] * len(GROUPS)


def plans_asked(deployment: WorldDeployment, group: Group) -> list[tuple[int, float]]:
    """K1 and least score of every explicit plan that was asked for a group's target, in order."""
    specs = [r.spec for r in deployment.scheduler.requests if words(r.spec.prompt) == group.targets[0].prompt]
    return [
        (s.explicit_reuse.reuse_steps, round(s.explicit_reuse.min_score, 4))
        for s in specs
        if s.HasField("explicit_reuse")
    ]


def test_plans_and_baselines_are_ways_of_the_same_run(deployment: WorldDeployment, tmp_path: Path) -> None:
    at = deployment.target
    deployment.scheduler.score = 0.96
    result = evaluate(
        *("--prompts", "set.jsonl", "--target", at, "--cache-target", at, "--empty-cache"),
        *("--policy", "none", "--baseline", "nirvana", "--baseline", "threshold", "--baseline", "modm"),
        *(
            "--plan",
            "shallow=reuse_steps:1",
            "--plan",
            "deep=reuse_steps:3,region_end:4,region:probe,amplify:contrast:0.5",
        ),
    )
    assert result.exit_code == 0, result.output
    found = figures(tmp_path)
    assert {name.partition(".")[0] for name in found} == {
        *("full", "shallow", "deep", "nirvana", "threshold", "modm", "miss")
    }
    assert (found["shallow.steps_run"]["value"], found["deep.steps_run"]["value"]) == (3, 1)
    assert found["shallow.alignment_all"]["value"] == 1
    assert found["nirvana.steps_run"]["value"] == found["threshold.steps_run"]["value"] == 2
    assert found["nirvana.single_edit_hit_share"]["value"] == found["nirvana.false_reuse_rate"]["value"] == 1
    # The plans' hits told the score.
    assert plans_asked(deployment, GROUPS[0]) == [(1, 0), (3, 0), (2, 0.95), (2, 0.75), (2, 0.75)]
    renoised = [r.spec for r in deployment.scheduler.requests if r.spec.explicit_reuse.renoised]
    assert len(renoised) == len(GROUPS)
    deep = next(r.spec for r in deployment.scheduler.requests if r.spec.explicit_reuse.reuse_steps == 3)
    assert deep.explicit_reuse.region.source == plan_pb2.REGION_SOURCE_PROBE
    assert deep.explicit_reuse.amplification.strength == 0.5
    assert "false reuse" in result.stdout


@pytest.mark.parametrize(
    ("score", "plan", "hits"), [(0.96, (2, 0.95), 1), (0.9, (1, 0.85), 1), (0.84, (1, 0.85), 0)]
)
def test_a_baseline_whose_score_nobody_told_asks_for_it_once_and_drops_the_video(
    deployment: WorldDeployment, tmp_path: Path, score: float, plan: tuple[int, float], hits: int
) -> None:
    at = deployment.target
    deployment.scheduler.score = score
    result = evaluate(
        *("--prompts", "set.jsonl", "--target", at, "--cache-target", at, "--empty-cache"),
        *("--policy", "none", "--baseline", "nirvana"),
    )
    assert result.exit_code == 0, result.output
    for group in GROUPS:
        assert plans_asked(deployment, group) == [(1, -1), plan]
    found = figures(tmp_path)
    assert found["nirvana.hit_share"]["value"] == hits
    # A baseline that does not reuse looked all the same: what it cost is a miss.
    assert found["miss.seconds_p50"]["n"] == len(GROUPS) * (1 if hits else 2)
    assert found["full.seconds_p50"]["n"] == len(GROUPS)
    assert not [name for name in found if name.startswith("probe")]


def test_a_foreign_cache_is_left_as_it_is(deployment: WorldDeployment, tmp_path: Path) -> None:
    result = evaluate("--prompts", "set.jsonl", "--target", deployment.target, "--policy", "fast", "--json")
    assert result.exit_code == 0, result.output
    assert deployment.cache.purges == []
    donors = {group.donor.prompt for group in GROUPS}
    specs = [r.spec for r in deployment.scheduler.requests if r.spec.prompt in donors]
    assert {spec.reuse for spec in specs if not spec.HasField("explicit_reuse")} == {OFF}
    assert [g.spec.prompt for g in deployment.scheduler.entries] == [group.donor.prompt for group in GROUPS]
    assert json.loads(result.stdout)["eval"]["figures"] == figures(tmp_path)
    assert "miss.seconds_p50" not in figures(tmp_path)  # no donor looked into an empty cache


def test_without_scenes_alignment_is_left_out_and_said(deployment: WorldDeployment, tmp_path: Path) -> None:
    write_groups(tmp_path / "own.jsonl", [Group("style", Ask("a cat"), (Ask("a dog"), Ask("a cow")))])
    result = evaluate("--prompts", "own.jsonl", "--target", deployment.target, "--policy", "balanced")
    assert result.exit_code == 0, result.output
    assert "alignment and donor drift are left out: the prompts name no scenes" in result.stderr
    found = figures(tmp_path)
    assert found["balanced.style.psnr_db"]["n"] == 2
    assert not [name for name in found if "alignment" in name or "drift" in name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy", "off"), "policy: must be one of safe, balanced, fast, or none alone, not 'off'"),
        (("--policy", "none", "--policy", "fast"), "or none alone, not 'none'"),
        (("--baseline", "chai"), "baseline: must be one of nirvana, threshold, modm, not 'chai'"),
        (
            ("--plan", "reuse_steps:2"),
            "plan: must be NAME=SPEC, such as deep=reuse_steps:2, not 'reuse_steps:2'",
        ),
        (("--plan", "fast=reuse_steps:2"), "plan: the name 'fast' is taken"),
        (("--plan", "Deep=reuse_steps:2"), "its name must be 1 to 32 of"),
        (("--plan", "deep=reuse_steps:0"), "plan: deep: reuse_steps: must be 1 to 199, not 0"),
        (("--split", "all"), "split: must be one of train, calibration, test, not 'all'"),
        (("--phrasing", "odd"), "phrasing: must be seen or unseen"),
        (("--empty-cache",), "empty_cache: needs --target and --cache-target"),
        (("--prompts", "absent.jsonl"), "absent.jsonl"),
    ],
)
def test_bad_input_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = evaluate(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "found").exists()


def test_without_its_libraries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "evaluation.evaluation", None)
    result = evaluate("--target", "localhost:1")
    assert result.exit_code == 2
    assert "pip install 'chorus-serving[eval]'" in result.stderr


def test_a_command_that_cannot_be_loaded_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("eval", "no_such_package.command:evaluate", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    lonely = typer.Typer()
    lonely.command("other")(lambda: None)
    plugins.add_commands(lonely)
    result = CliRunner().invoke(lonely, ["eval", "--pairs", "3"])
    assert result.exit_code == 2
    assert "no_such_package" in result.stderr
    assert "pip install 'chorus-serving[eval]'" in result.stderr
