"""Verifies the contract: lint, breaking changes against its baseline, and the committed generated code."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.manifests import ROOT

PROTO = ROOT / "proto"
BASELINE = PROTO / "baseline.json"


@pytest.mark.parametrize("arguments", ["lint", "format --diff --exit-code", "build"])
def test_contract_passes_buf(buf: Path, arguments: str) -> None:
    done = run_buf(buf, PROTO, *arguments.split())
    assert done.returncode == 0, done.stdout + done.stderr


def test_buf_lint_reports_a_violation(buf: Path, tmp_path: Path) -> None:
    (tmp_path / "buf.yaml").write_text((PROTO / "buf.yaml").read_text())
    (tmp_path / "wrong.proto").write_text('syntax = "proto3";\npackage wrong;\nenum Mood { HAPPY = 0; }\n')
    done = run_buf(buf, tmp_path, "lint")
    assert done.returncode != 0
    assert 'should be suffixed with "_UNSPECIFIED"' in done.stdout


def test_contract_does_not_break_its_baseline(buf: Path) -> None:
    done = run_buf(buf, PROTO, "breaking", "--against", str(BASELINE))
    assert done.returncode == 0, f"{done.stdout}A deliberate break before 1.0: see CONTRIBUTING.md"


@pytest.mark.parametrize(
    ("line", "replacement", "report"),
    [
        ("  uint64 entries = 1;\n", "", 'Previously present field "1" with name "entries"'),
        ("  uint64 entries = 1;\n", "  uint64 rows = 1;\n", 'changed name from "entries" to "rows"'),
        ("  uint64 entries = 1;\n", "  int64 entries = 1;\n", 'changed type from "uint64" to "int64"'),
    ],
    ids=["removed", "renamed", "another type"],
)
def test_buf_breaking_reports_a_changed_field(
    buf: Path, tmp_path: Path, line: str, replacement: str, report: str
) -> None:
    shutil.copytree(PROTO, tmp_path / "proto", ignore=shutil.ignore_patterns("gen"))
    file = tmp_path / "proto/chorus/cache/v1/cache.proto"
    text = file.read_text()
    assert line in text
    file.write_text(text.replace(line, replacement, 1))
    done = run_buf(buf, tmp_path / "proto", "breaking", "--against", str(BASELINE))
    assert done.returncode != 0
    assert report in done.stdout


def test_baseline_holds_the_whole_contract(buf: Path) -> None:
    """Verifies the baseline: a field that it lacks could be removed later without a report."""
    done = run_buf(buf, PROTO, "build", "--exclude-source-info", "-o", "-#format=json")
    assert done.returncode == 0, done.stderr
    assert json.loads(BASELINE.read_text()) == json.loads(done.stdout), "run `make proto-baseline`"


@pytest.mark.timeout(300)
def test_generated_code_is_current(tmp_path: Path) -> None:
    subprocess.run(
        [str(PROTO / "generate"), str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable},
        check=True,
        timeout=280,
    )
    generated, committed = list_files(tmp_path), list_files(PROTO / "gen")
    assert sorted(generated) == sorted(committed), "run `make proto` and commit the result"
    _, different, unreadable = filecmp.cmpfiles(tmp_path, PROTO / "gen", generated, shallow=False)
    assert (different, unreadable) == ([], []), "run `make proto` and commit the result"


def run_buf(buf: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(buf), *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def list_files(directory: Path) -> list[str]:
    return [
        str(file.relative_to(directory))
        for file in directory.rglob("*.py*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
