"""The contract is clean, and the generated code is what it generates."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.manifests import ROOT

PROTO = ROOT / "proto"


@pytest.mark.parametrize("arguments", ["lint", "format --diff --exit-code", "build"])
def test_buf_is_content(buf: Path, arguments: str) -> None:
    done = subprocess.run(
        [str(buf), *arguments.split()], cwd=PROTO, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_buf_sees_a_fault(buf: Path, tmp_path: Path) -> None:
    (tmp_path / "buf.yaml").write_text((PROTO / "buf.yaml").read_text())
    (tmp_path / "wrong.proto").write_text('syntax = "proto3";\npackage wrong;\nenum Mood { HAPPY = 0; }\n')
    done = subprocess.run(
        [str(buf), "lint"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert 'should be suffixed with "_UNSPECIFIED"' in done.stdout


@pytest.mark.timeout(300)
def test_generated_code_is_current(tmp_path: Path) -> None:
    subprocess.run(
        [str(PROTO / "generate"), str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable},
        check=True,
        timeout=280,
    )
    made, kept = _files(tmp_path), _files(PROTO / "gen")
    assert sorted(made) == sorted(kept), "run `make proto` and commit what changed"
    _, different, unread = filecmp.cmpfiles(tmp_path, PROTO / "gen", made, shallow=False)
    assert (different, unread) == ([], []), "run `make proto` and commit what changed"


def _files(directory: Path) -> list[str]:
    return [
        str(file.relative_to(directory))
        for file in directory.rglob("*.py*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
