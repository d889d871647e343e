"""Sections of the benchmark, each in a separate process so that a device error does not affect the next."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.gpu.report import Budget, Report
from bench.results import read


@dataclass(frozen=True)
class Section:
    """Time limits of a section.

    Attributes:
        seconds: Upper bound on the run time, in seconds.
        least: Remaining time below which the section is skipped, in seconds.
    """

    seconds: float
    least: float


# In order of execution. Their sum exceeds the default total, because few sections use all of their time.
SECTIONS: Final[Mapping[str, Section]] = {
    "ceilings": Section(45, 15),
    "kernels": Section(110, 25),
    "wan1_3b": Section(140, 40),
    "wan14b": Section(300, 70),
    "tensorrt": Section(90, 20),
}


def load_section(name: str) -> Callable[[Any], None]:
    """Returns the function that runs a section with a `section.Bench`. Imports torch."""
    from bench.gpu import ceilings, kernels, steps, tensorrt

    if name in ("wan1_3b", "wan14b"):
        return partial(steps.run, name=name)
    runs = {"ceilings": ceilings.run, "kernels": kernels.run, "tensorrt": tensorrt.run}
    return runs[name]


def run_all(
    names: Sequence[str],
    report: Report,
    budget: Budget,
    command: Callable[[str, Path, float, float | None], Sequence[str]],
) -> None:
    """Runs sections in sequence and merges their files into the report.

    Args:
        command: Returns the command line of a section for its name, the file to write, its time limit in
            seconds, and the rate of matrix products in TFLOP/s if known.
    """
    for name in names:
        section, left = SECTIONS[name], budget.left
        if left < section.least:
            report.note("skipped", name, f"{left:.0f} s left, needs at least {section.least:.0f} s")
            continue
        seconds = min(section.seconds, left)
        path = report.path.with_name(f"{report.path.stem}.{name}.json")
        path.unlink(missing_ok=True)
        failure = run_one(command(name, path, seconds, _matmul_rate(report)), seconds)
        try:
            report.merge(read(path))
            path.unlink()
        except (OSError, ValueError, KeyError) as error:
            failure = failure or f"wrote no result file: {error!r}"
        if failure and name not in report.notes["failed"]:
            report.note("failed", name, failure)


def run_one(command: Sequence[str], seconds: float) -> str | None:
    """Runs a section until it ends or exceeds its time limit. Returns the reason of a failure, or None."""
    # A separate process group, because compilers leave worker processes behind.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s; figures measured until then are kept"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"its process ended with status {status}" if status else None


def _matmul_rate(report: Report) -> float | None:
    figure = report.figures.get("matmul_tflops")
    return float(figure["value"]) if isinstance(figure, Mapping) else None
