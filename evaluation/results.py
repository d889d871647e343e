"""Result files: statistics of measurements, and the JSON format in which they are stored.

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
        value: The value.
        unit: Unit of the value.
        n: Number of measurements.
        ci95: 95 % interval of the value; None for a single measurement, which allows none.
    """

    value: float
    unit: str
    n: int
    ci95: tuple[float, float] | None = None


def single(value: float, unit: str) -> Figure:
    """Returns the figure of a single measurement."""
    return Figure(value, unit, 1)


def median(values: Sequence[float], unit: str) -> Figure:
    """Computes the median and its bootstrap interval. Requires at least one value."""
    return _bootstrap(values, lambda draws: np.median(draws, axis=-1), unit)


def mean(values: Sequence[float], unit: str) -> Figure:
    """Computes the mean and its bootstrap interval. Requires at least one value."""
    return _bootstrap(values, lambda draws: np.mean(draws, axis=-1), unit)


def ratio(numerators: Sequence[float], denominators: Sequence[float], unit: str = "x") -> Figure:
    """Computes the ratio of two sums over the same measurements, and its bootstrap interval.

    Requires denominators ≥ 0, at least one of them above 0. Draws whose denominators are all 0 are ignored.
    """
    pairs = np.stack([numerators, denominators], axis=-1)

    def divide(draws: NDArray[np.float64]) -> NDArray[np.float64]:
        above, below = np.moveaxis(draws.sum(axis=-2), -1, 0)
        undefined = np.full_like(below, np.nan)
        quotients: NDArray[np.float64] = np.divide(above, below, out=undefined, where=below > 0)
        return quotients

    return _bootstrap(pairs, divide, unit)


def _bootstrap(
    values: Sequence[float] | NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    unit: str,
) -> Figure:
    """Computes a statistic over axis n and its percentile interval by a bootstrap with a fixed seed.

    Args:
        values: Measurements, [n] or [n, 2].
        statistic: Function from [..., n] or [..., n, 2] to [...]; NaN for draws that are to be ignored.
    """
    data, n = np.asarray(values, dtype=np.float64), len(values)
    value = float(statistic(data))
    if n < 2:
        return single(value, unit)
    draws = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n), dtype=np.int32)
    low, high = np.nanpercentile(statistic(data[draws]), (2.5, 97.5))
    return Figure(value, unit, n, (float(low), float(high)))


def share(hits: int, n: int) -> Figure:
    """Computes the share of `hits` among `n` and its Wilson interval. Requires n ≥ 1."""
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"hits: must be 0 to n, and n at least 1, not {hits} of {n}")
    p, z = hits / n, _Z95
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    # At 0 and at n hits the interval ends exactly at the share; rounding must not move it past.
    return Figure(p, "share", n, (min(max(low, 0.0), p), max(min(high, 1.0), p)))


def write(path: Path, command: str, figures: Mapping[str, Figure | Mapping[str, Any]], **more: Any) -> None:
    """Writes a result file and creates its folder.

    Args:
        command: Command line that reproduces the figures.
        figures: Figures measured now, or in the form in which a result file contains them.
        more: Further fields of the file; a field of the same name replaces the one determined here.
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
    """Reads a result file."""
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def _plain(figure: Figure) -> dict[str, Any]:
    plain = asdict(figure)
    plain["value"] = _round(figure.value)
    plain["ci95"] = None if figure.ci95 is None else [_round(bound) for bound in figure.ci95]
    return plain


def _round(value: float) -> float:
    """Rounds to four decimals, or to three significant digits below 0.01, where decimals would lose them."""
    return round(value, 4) if abs(value) >= 0.01 else float(f"{value:.3g}")


def commit() -> str | None:
    """Returns the commit, with "+" if the working tree differs from it; None outside the repository."""
    if not (ROOT / ".git").exists():  # installed as a package; a repository further up is another project's
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
    """Returns the processor, the number of cores that this process may use, and the memory."""
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
    """Returns the versions of Python and of the installed packages that affect speed."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
