"""Verifies rules of the repository that no other tool checks."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.processes import ROOT

OURS = (
    "services",
    "rpc",
    "client",
    "models",
    "evaluation",
    "calibration",
    "bench",
    "tests",
    "docs",
    "examples",
    "infra",
)
GENERATED = {"node_modules", "gen"}
MAX_LINES, MAX_TEST_LINES = 400, 600


def list_sources(folders: Iterable[str] = OURS) -> Iterator[Path]:
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            if not GENERATED & set(path.parts):
                yield path


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


def test_files_are_short() -> None:
    files = list(list_sources())
    assert len(files) > 50
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}
    too_long = {
        str(path): length
        for path, length in lengths.items()
        if length > (MAX_TEST_LINES if path.parts[0] == "tests" else MAX_LINES)
    }
    assert not too_long


def find_repeated_bounds(texts: dict[str, str]) -> dict[str, list[str]]:
    """Returns the names of bounds that several files define, public or private, with those files."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for name, text in texts.items():
        for match in re.finditer(r"^_?(MAX_\w+)\s*(?::[^=\n]+)?=[^=]", text, re.MULTILINE):
            places[match[1]].append(name)
    return {bound: files for bound, files in places.items() if len(files) > 1}


def test_each_bound_is_defined_once() -> None:
    sources = list_sources(("services", "rpc", "client", "evaluation", "calibration"))
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in sources}
    assert any("MAX_STEPS: Final" in text for text in texts.values())
    assert find_repeated_bounds(texts) == {}, "import it from chorus_rpc.limits"


def test_repeated_bound_is_found() -> None:
    texts = {
        "a.py": "MAX_STEPS: Final = 200\nMAX_DONORS = 16\n",
        "b.py": "_MAX_STEPS = 201\nif MAX_DONORS == 16:\n    MAX_DONORS = 3\n",
    }
    assert find_repeated_bounds(texts) == {"MAX_STEPS": ["a.py", "b.py"]}


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
def test_module_imports_no_heavy_dependency(module: str, heavy: set[str]) -> None:
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
