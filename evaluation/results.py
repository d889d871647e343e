"""Figures on disk: one JSON file for each measurement, in one format.

`{"command", "commit", "hardware", "versions", "figures": {name: {"value", "unit", "n", "ci95"}}}`
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ROOT: Final = Path(__file__).resolve().parents[1]
_RESAMPLES: Final = 10_000
_Z95: Final = 1.96
_PACKAGES: Final = (
    "av",
    "cache-dit",
    "diffusers",
    "grpcio",
    "milvus-lite",
    "numpy",
    "onnx",
    "onnxruntime",
    "protobuf",
    "pymilvus",
    "tensorrt-rtx-cu13",
    "torch",
    "transformers",
    "triton",
)


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
    """The median, with its bootstrap interval. Needs at least one value."""
    return _bootstrap(values, lambda draws: np.median(draws, axis=-1), unit)


def mean(values: Sequence[float], unit: str) -> Figure:
    """The mean, with its bootstrap interval. Needs at least one value."""
    return _bootstrap(values, lambda draws: np.mean(draws, axis=-1), unit)


def ratio(numerators: Sequence[float], denominators: Sequence[float], unit: str = "x") -> Figure:
    """The ratio of two sums over the same measurements, with its bootstrap interval.

    Needs at least one denominator above 0; none is below. Draws of denominators that are all 0 count nothing.
    """
    pairs = np.stack([numerators, denominators], axis=-1)

    def divided(draws: NDArray[np.float64]) -> NDArray[np.float64]:
        above, below = np.moveaxis(draws.sum(axis=-2), -1, 0)
        none = np.full_like(below, np.nan)
        quotients: NDArray[np.float64] = np.divide(above, below, out=none, where=below > 0)
        return quotients

    return _bootstrap(pairs, divided, unit)


def _bootstrap(
    values: Sequence[float] | NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    unit: str,
) -> Figure:
    """A statistic over axis n, with the percentile interval of a bootstrap of fixed seed.

    Args:
        values: [n] or [n, 2].
        statistic: from [..., n] or [..., n, 2] to [...]; NaN for draws that count nothing.
    """
    data, n = np.asarray(values, dtype=np.float64), len(values)
    value = float(statistic(data))
    if n < 2:
        return single(value, unit)
    draws = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n), dtype=np.int32)
    low, high = np.nanpercentile(statistic(data[draws]), (2.5, 97.5))
    return Figure(value, unit, n, (float(low), float(high)))


def share(hits: int, n: int) -> Figure:
    """The share of `hits` among `n`, with its Wilson interval. Needs n ≥ 1."""
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"hits: must be 0 to n, and n at least 1, not {hits} of {n}")
    p, z = hits / n, _Z95
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    # At 0 and at n the interval ends at the share itself, but for rounding.
    return Figure(p, "share", n, (min(max(low, 0.0), p), max(min(high, 1.0), p)))


def write(path: Path, command: str, figures: Mapping[str, Figure | Mapping[str, Any]], **more: Any) -> None:
    """Writes the file of a measurement; its folder is made.

    Args:
        figures: measured now, or in the form in which a file has them.
        more: what the file holds besides, or instead of what is found here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "command": command,
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "figures": {
            name: _plain(figure) if isinstance(figure, Figure) else figure for name, figure in figures.items()
        },
        **more,
    }
    path.write_text(json.dumps(report, indent=2) + "\n")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _plain(figure: Figure) -> dict[str, Any]:
    plain = asdict(figure)
    plain["value"] = _rounded(figure.value)
    plain["ci95"] = None if figure.ci95 is None else [_rounded(bound) for bound in figure.ci95]
    return plain


def _rounded(value: float) -> float:
    """Four decimals, or three digits of what would vanish in them."""
    return round(value, 4) if abs(value) >= 0.01 else float(f"{value:.3g}")


def commit() -> str | None:
    """The commit measured, with "+" when the tree differed from it; None outside its own repository."""
    if not (ROOT / ".git").exists():  # installed; a repository further up is somebody else's
        return None
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
