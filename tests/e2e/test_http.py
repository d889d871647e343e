"""Verifies the API over HTTP on the whole stack: a video from its request to its file, and a remix of it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.gateway.processes import GatewayProcess
from tests.integration.gateway.sdk_calls import PROMPTS
from tests.processes import ROOT, free_port
from tests.stack import Stack, running_stack

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a gateway in front of a stack."""
    directory = tmp_path_factory.mktemp("http")
    with running_stack(directory / "stack") as stack:
        gateway = start_gateway(stack, directory)
        try:
            yield f"http://127.0.0.1:{gateway.port}"
        finally:
            gateway.stop()


def start_gateway(stack: Stack, directory: Path) -> GatewayProcess:
    variables = {"CHORUS_GATEWAY_SCHEDULER_TARGET": stack.target}
    gateway = GatewayProcess("gateway", variables, free_port(), directory / "gateway.log")
    gateway.start()
    return gateway


def test_video_is_made_followed_downloaded_and_remixed(url: str) -> None:
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
        created = http.post("/v1/videos", json={"prompt": PROMPTS[0], "seed": 7}).json()
        assert created["status"] in ("queued", "in_progress"), created
        progress: list[int] = []
        kinds: list[str] = []
        with http.stream("GET", f"/v1/videos/{created['id']}/events") as response:
            for line in response.iter_lines():
                if line.startswith("event: "):
                    kinds.append(line.removeprefix("event: "))
                if line == "event: step_completed":
                    progress.append(http.get(f"/v1/videos/{created['id']}").json()["progress"])
        assert kinds[-1] == "succeeded"
        assert progress == sorted(progress)
        video = http.get(f"/v1/videos/{created['id']}").json()
        assert (video["status"], video["progress"]) == ("completed", 100)
        assert video["chorus"]["decision"] == "miss"
        assert float(video["seconds"]) > 0
        content = http.get(f"/v1/videos/{created['id']}/content")
        assert content.content[4:8] == b"ftyp"
        assert content.headers["etag"] == f'"{hashlib.sha256(content.content).hexdigest()}"'
        remix = http.post(f"/v1/videos/{created['id']}/remix", json={"prompt": PROMPTS[1]}).json()
        assert remix["remixed_from_video_id"] == created["id"]
        for identifier in (remix["id"], created["id"]):
            assert http.delete(f"/v1/videos/{identifier}").json()["deleted"] is True


def test_every_call_of_the_sdk_succeeds_on_the_whole_stack(url: str) -> None:
    script = ROOT / "tests/integration/gateway/sdk_calls.py"
    done = subprocess.run(
        [sys.executable, str(script), url, "any-key"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failed"] == {}
