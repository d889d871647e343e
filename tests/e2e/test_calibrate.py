"""Tests `chorus calibrate` on a Wan checkpoint: interrupted, continued, and used by the planner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2_grpc
from chorus_cli.local import model_files
from chorus_cli.main import app
from chorus_rpc.channels import open_channel
from typer.testing import CliRunner

from bench.checkpoints import save_wan_pipeline, write_model_file
from calibration.rows import MIN_PAIRS
from services.embedder.encoders import UMT5Encoder
from tests.e2e.calls import get, submit, watch_to_end
from tests.stack import running_stack

pytestmark = pytest.mark.timeout(600)
DONOR = "the small red circle moves right in the green square"
TARGET = DONOR.replace("red", "blue")
PAIRS = 24


def write_pairs(path: Path) -> Path:
    """Writes pairs that differ in one colour, and a first one that differs in everything."""
    lines = [{"kind": "unrelated", "donor": {"prompt": "a cat runs"}, "targets": [{"prompt": DONOR}]}]
    for number in range(PAIRS):
        place = f" to the {'left' if number % 2 else 'right'} of circle {number}"
        pair = {"kind": "colour", "donor": {"prompt": DONOR + place}, "targets": [{"prompt": TARGET + place}]}
        lines.append(pair)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def calibrate(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


async def test_model_is_calibrated_and_planned_by_its_own_calibration(tmp_path: Path) -> None:
    pipeline = save_wan_pipeline(tmp_path / "pipeline")
    model = write_model_file(tmp_path, pipeline, encoder_id=UMT5Encoder(pipeline).id)
    out = tmp_path / "calibration"
    files = ("--model", model, "--prompts", write_pairs(tmp_path / "pairs.jsonl"), "--out", out)
    options = (*files, "--max-depths", 2, "--spreads", 1)

    done = calibrate(*options)
    assert done.exit_code == 0, done.stderr
    found = json.loads((out / "calibration.json").read_text())
    assert found["model_id"] == "random-wan"
    assert found["pairs"] == {"colour": PAIRS}
    assert found["rows"], "a random network hardly reads its prompt, so reuse costs it little"
    assert {row["edit"] for row in found["rows"]} == {"colour"}
    for picture in ("calibration.png", "sheet.png"):
        assert (out / picture).stat().st_size > 1_000

    again = calibrate(*options)
    assert "continuing: 25 of 25 pairs are measured" in again.stderr
    assert json.loads((out / "calibration.json").read_text())["rows"] == found["rows"]

    model.write_text('calibration = "calibration/calibration.json"\n' + model.read_text())
    (tmp_path / "stack").mkdir()
    with running_stack(tmp_path / "stack", model_files.choose_models([model], {})) as stack:
        async with open_channel(stack["scheduler"].target) as channel:
            scheduler: Any = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            for prompt in (DONOR, TARGET):
                job = await submit(scheduler, prompt, reuse=plan_pb2.REUSE_POLICY_FAST)
                await watch_to_end(scheduler, job.generation_id)
            generation = await get(scheduler, job.generation_id)
    assert [reason.code for reason in generation.plan.reasons] == [
        plan_pb2.PLAN_REASON_CODE_EDIT,
        plan_pb2.PLAN_REASON_CODE_CALIBRATION,
    ]
    assert f"n = {PAIRS}" in generation.plan.reasons[1].text
    assert PAIRS >= MIN_PAIRS
