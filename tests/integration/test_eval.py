"""`chorus eval` against a scheduler whose videos show just what its cache decision makes them show."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import plan_pb2, video_pb2
from chorus.scheduler.v1 import scheduler_pb2
from chorus_client import plugins
from chorus_client.cli import app
from typer.testing import CliRunner

from models.movingshapes import world
from models.movingshapes.world import Scene
from services.common.blobs import chunks
from services.denoiser.video import encode_mp4, to_frames
from tests.integration.client_fakes import (
    STEPS,
    FakeCache,
    FakeDeployment,
    FakeScheduler,
    deployment_in_thread,
)
from yardstick.prompts import Ask, Group, read_groups, write_groups
from yardstick.scenes import KINDS, make_groups

GROUPS = make_groups("calibration", len(KINDS), 5, "unseen")
SCENES = {ask.prompt: ask.scene for group in GROUPS for ask in (group.donor, *group.targets)}
UPSCALE = 2
OFF, BALANCED, FAST = (
    plan_pb2.REUSE_POLICY_OFF,
    plan_pb2.REUSE_POLICY_BALANCED,
    plan_pb2.REUSE_POLICY_FAST,
)


class WorldScheduler(FakeScheduler):
    """Renders what prompts ask. `balanced` and `fast` reuse the last entry; `fast` shows what that showed."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[scheduler_pb2.Generation] = []
        self.videos: dict[str, bytes] = {}

    async def _play(self, generation: scheduler_pb2.Generation) -> None:
        spec = generation.spec
        spec.shape.CopyFrom(video_pb2.VideoShape(frames=world.FRAMES, height=world.HEIGHT, width=world.WIDTH))
        total = spec.steps or STEPS
        generation.plan.total_steps = generation.steps_run = total
        prompt = spec.prompt
        if self.entries and spec.reuse in (BALANCED, FAST):
            entry = self.entries[-1]
            generation.donor.CopyFrom(
                plan_pb2.DonorRef(score=0.9, prompt=entry.spec.prompt, generation_id=entry.generation_id)
            )
            generation.steps_run = total - 1
            prompt = entry.spec.prompt if spec.reuse == FAST else prompt
        video = self._render(SCENES.get(prompt), spec.seed)
        self.videos[generation.generation_id] = video
        generation.video.CopyFrom(
            video_pb2.VideoInfo(
                size_bytes=len(video),
                digest=hashlib.sha256(video).hexdigest(),
                frames=world.FRAMES,
                height=world.HEIGHT * UPSCALE,
                width=world.WIDTH * UPSCALE,
            )
        )
        if not spec.no_store:
            self.entries.append(generation)
        generation.state = scheduler_pb2.GENERATION_STATE_SUCCEEDED
        await self.emit(generation, succeeded=scheduler_pb2.SucceededEvent(video=generation.video))

    def _render(self, scene: Scene | None, seed: int) -> bytes:
        table = world.scene_table([scene or Scene("navy", ())])
        video = world.render(table, torch.Generator().manual_seed(seed))[0]
        return encode_mp4(to_frames(video, UPSCALE), 8)

    async def GetVideo(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield scheduler_pb2.GetVideoResponse(header=self._find(request.generation_id).video)
        for chunk in chunks(self.videos[request.generation_id]):
            yield scheduler_pb2.GetVideoResponse(chunk=chunk)


class WorldDeployment(FakeDeployment):
    def __init__(self) -> None:
        super().__init__()
        self.scheduler: WorldScheduler = WorldScheduler()
        self.cache = EmptiedCache(self.scheduler)


class EmptiedCache(FakeCache):
    def __init__(self, scheduler: WorldScheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    async def Purge(self, request: cache_pb2.PurgeRequest, context: Any) -> Any:
        self._scheduler.entries.clear()
        return await super().Purge(request, context)


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
    specs = [r.spec for r in deployment.scheduler.requests if r.spec.prompt in SCENES]
    assert len(specs) == 5 * len(GROUPS)
    for i, group in enumerate(GROUPS):
        donor, *targets = specs[5 * i : 5 * i + 5]
        assert (donor.prompt, donor.seed, donor.no_store) == (group.donor.prompt, 100 + 2 * i, False)
        assert {(s.prompt, s.seed, s.no_store) for s in targets} == {
            (group.targets[0].prompt, 101 + 2 * i, True)
        }
        assert targets[0].reuse == OFF
    assert [purge.all for purge in deployment.cache.purges] == [True] * len(GROUPS)


def test_a_foreign_cache_is_left_as_it_is(deployment: WorldDeployment, tmp_path: Path) -> None:
    result = evaluate("--prompts", "set.jsonl", "--target", deployment.target, "--policy", "fast", "--json")
    assert result.exit_code == 0, result.output
    assert deployment.cache.purges == []
    donors = {group.donor.prompt for group in GROUPS}
    assert {r.spec.reuse for r in deployment.scheduler.requests if r.spec.prompt in donors} == {OFF}
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
        (("--policy", "off"), "policy: must be one of safe, balanced, fast, not 'off'"),
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
    monkeypatch.setitem(sys.modules, "yardstick.evaluation", None)
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
