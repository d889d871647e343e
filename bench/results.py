"""Figures on disk: one JSON file for each measurement, in one format.

`{"command", "commit", "hardware", "versions", "figures": {name: {"value", "unit", "n", "ci95"}}}`
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "bench" / "results"
_RESAMPLES: Final = 10_000
_PACKAGES: Final = ("av", "grpcio", "milvus-lite", "numpy", "protobuf", "pymilvus", "torch", "transformers")


@dataclass(frozen=True)
class Figure:
    """A measured value.

    Attributes:
        n: how many measurements stand behind it.
        ci95: the 95 % interval of the value; None where one measurement allows none.
    """

    value: float
    unit: str
    n: int
    ci95: tuple[float, float] | None = None


def single(value: float, unit: str) -> Figure:
    """One measurement."""
    return Figure(value, unit, 1)


def median(values: Sequence[float], unit: str) -> Figure:
    """The median, with the percentile interval of a bootstrap of fixed seed. Needs at least one value."""
    if len(values) < 2:
        return single(values[0], unit)
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    low, high = medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES) - 1]
    return Figure(statistics.median(values), unit, len(values), (low, high))


def write(path: Path, command: str, figures: Mapping[str, Figure]) -> None:
    """Writes the file of a measurement; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "command": command,
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "figures": {name: _plain(figure) for name, figure in figures.items()},
    }
    path.write_text(json.dumps(report, indent=2) + "\n")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _plain(figure: Figure) -> dict[str, Any]:
    plain = asdict(figure)
    plain["value"] = round(figure.value, 4)
    plain["ci95"] = None if figure.ci95 is None else [round(bound, 4) for bound in figure.ci95]
    return plain


def commit() -> str | None:
    """The commit measured, with "+" when the tree differed from it; None outside git."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip()


def hardware() -> dict[str, Any]:
    """The processor, the cores this process may use, and the memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": _cpu(), "cores": cores, "memory_gib": round(memory / (1 << 30), 1)}


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Python and the packages that matter to speed, those that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
