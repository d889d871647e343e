"""Runs the examples and the notebook as a reader would, against real services."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest

from tests.processes import ROOT, choose_port_variables
from tests.stack import Stack

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


def run_python(arguments: list[str], folder: Path, target: str) -> str:
    """Runs Python in `folder` with CHORUS_TARGET set; returns its output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "CHORUS_TARGET": target},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_frames(video: bytes) -> list[Any]:
    with av.open(io.BytesIO(video), "r") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_notebook_shows_a_miss_then_a_hit(stack: Stack, tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    script = tmp_path / "notebook.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    output = run_python([str(script)], tmp_path, stack.target)
    assert "miss - 4 steps computed\n" in output
    assert re.search(r"hit - [123] of 4 steps computed\n", output)
    assert "donor: a small yellow square standing still on a brown background\n" in output
    assert "kind of edit: background" in output
    for name in ("first.mp4", "second.mp4"):
        assert len(read_frames((tmp_path / name).read_bytes())) >= 8


def test_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.parametrize("page", ["README.md", "client/README.md", "docs/api.md"])
def test_python_code_of_the_page_runs(stack: Stack, tmp_path: Path, page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        run_python(["-c", block], tmp_path, stack.target)
    assert read_frames((tmp_path / "out.mp4").read_bytes())


def test_async_client_saves_every_video(stack: Stack, tmp_path: Path) -> None:
    prompts = ["a white square moving up", "a white square moving down"]
    output = run_python([str(EXAMPLES / "async_client.py"), "out", *prompts], tmp_path, stack.target)
    assert output.count("steps computed") == 2
    for number in (1, 2):
        assert read_frames((tmp_path / f"out/{number}.mp4").read_bytes())


def test_own_model_example_generates_a_video(tmp_path: Path) -> None:
    """Verifies the video of random weights: noise, with frames that are neither flat nor equal."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    block = (EXAMPLES / "own_model/README.md").read_text().split("```sh\n")[1].split("```")[0]
    build, up, generate = (shlex.split(line, comments=True) for line in block.splitlines())
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CHORUS_", "OTEL_"))}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **choose_port_variables()}
    subprocess.run(build, cwd=tmp_path, env=environment, timeout=120, check=True)
    with subprocess.Popen(
        [*up, "--json"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if "up" in json.loads(line):
                    break
            else:
                pytest.fail(f"`chorus up` ended: {lines}")
            subprocess.run(generate, cwd=tmp_path, env=environment, timeout=120, check=True)
        finally:
            process.terminate()
            process.wait(60)
    frames = read_frames((tmp_path / "noise.mp4").read_bytes())
    assert len(frames) == 16
    assert all(frame.std() > 5 for frame in frames)
    assert (frames[0] != frames[-1]).any()
