"""The rules of the house that no other tool checks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.processes import ROOT

OURS = ("services", "rpc", "client", "models", "evaluation", "bench", "tests", "docs", "examples", "infra")
MADE = {"node_modules", "gen"}


def test_import_rules_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_no_file_is_longer_than_a_room() -> None:
    files = [path for top in OURS for path in (ROOT / top).rglob("*.py") if not MADE & set(path.parts)]
    assert len(files) > 50
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 400}
    assert not long


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("services.cache.__main__", {"torch", "transformers", "diffusers"}),
        ("services.scheduler.__main__", {"torch", "transformers", "pymilvus", "minio"}),
        ("services.denoiser.__main__", {"transformers", "diffusers", "pymilvus", "minio"}),
        ("services.embedder.__main__", {"diffusers", "pymilvus", "minio", "av"}),
        (
            "chorus_cli.main",
            {"torch", "numpy", "pymilvus", "minio", "pydantic", "structlog", "opentelemetry"},
        ),
    ],
)
def test_a_room_loads_what_it_needs_and_no_more(module: str, heavy: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not heavy & loaded
