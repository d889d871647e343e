"""Verifies `chorus up` with the real services: start, use, a crash, stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from chorus_client import endpoints

from tests.integration.client.up import CHORUS, Up, running_up
from tests.processes import choose_port_variables

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with running_up(tmp_path, CHORUS_SCHEDULER_QUEUE_LIMT="5") as running:
        yield running


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_up_starts_restarts_and_stops_the_services(up: Up, tmp_path: Path) -> None:
    warning = up.read("warning")
    assert warning["service"] == "scheduler"
    assert "did_you_mean=CHORUS_SCHEDULER_QUEUE_LIMIT" in warning["log"]
    ready = up.read("up")
    assert (
        set(ready["pids"])
        == set(ready["targets"])
        == {
            "embedder",
            "cache",
            "denoiser",
            "scheduler",
            "gateway",
        }
    )
    with urllib.request.urlopen(f"http://{ready['targets']['gateway']}/v1/models", timeout=30) as response:
        assert json.load(response)["data"][0]["id"]

    prompt = "a large red circle moving right on a black background"
    first = up.chorus("generate", prompt, "-o", "first.mp4")
    assert first.returncode == 0, first.stderr
    assert "miss, 4 of 4 steps computed" in first.stdout
    assert (tmp_path / "first.mp4").read_bytes()[4:8] == b"ftyp"
    up.wait_for_entries("1")

    refused = up.chorus("up")
    assert refused.returncode == 1
    assert f"another `chorus up` (process {up.process.pid})" in refused.stderr

    os.kill(ready["pids"]["cache"], signal.SIGKILL)
    assert up.read("crashed")["service"] == "cache"
    assert up.read("ready")["service"] == "cache"
    generation = up.generation(prompt)
    for _ in range(10):  # the scheduler finds it again within seconds, and until then computes in full
        if not generation.get("warnings"):
            break
        generation = up.generation(prompt)
    assert generation.get("donor", {}).get("prompt") == prompt, f"{generation}\n{up.logs()}"
    assert generation["steps_run"] < 4

    pids = endpoints.running(tmp_path / ".chorus")
    assert pids is not None
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(120) == 0
    assert all(is_gone(pid) for pid in ready["pids"].values())
    assert not (tmp_path / ".chorus" / endpoints.FILE).exists()
    assert up.chorus("jobs", "--target", ready["targets"]["scheduler"]).returncode == 3


def test_setting_that_is_wrong_ends_it_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**choose_port_variables(), "CHORUS_SCHEDULER_LOG_LEVEL": "loud"}.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([*CHORUS, "up"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert (
        "error: scheduler ended with status 2 before it was ready; the end of .chorus/logs/scheduler.log:"
        in done.stderr
    )
    assert "CHORUS_SCHEDULER_LOG_LEVEL" in done.stderr
