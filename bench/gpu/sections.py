"""The sections, each in a process of its own: what one breaks on the device, the next does not see."""

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
    """Seconds that a section may take, and with fewer than which it is not begun."""

    seconds: float
    least: float


# In this order. Together longer than one call may be: few will take all of theirs.
SECTIONS: Final[Mapping[str, Section]] = {
    "ceilings": Section(45, 15),
    "kernels": Section(110, 25),
    "wan1_3b": Section(140, 40),
    "wan14b": Section(300, 70),
    "tensorrt": Section(90, 20),
}


def function(name: str) -> Callable[[Any], None]:
    """What a section runs, of a `section.Bench`. Loads torch."""
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
    """Runs sections one after the other and takes over what they found.

    Args:
        command: of a section: its name, the file that it is to write, its seconds, and the rate of matrix
            products in TFLOP/s where that is known.
    """
    for name in names:
        section, left = SECTIONS[name], budget.left
        if left < section.least:
            report.note("skipped", name, f"{left:.0f} s are left, and it takes {section.least:.0f} at least")
            continue
        seconds = min(section.seconds, left)
        path = report.path.with_name(f"{report.path.stem}.{name}.json")
        path.unlink(missing_ok=True)
        fault = run_one(command(name, path, seconds, _rate(report)), seconds)
        try:
            report.take(read(path))
            path.unlink()
        except (OSError, ValueError, KeyError) as error:
            fault = fault or f"left nothing behind: {error!r}"
        if fault and name not in report.notes["failed"]:
            report.note("failed", name, fault)


def run_one(command: Sequence[str], seconds: float) -> str | None:
    """Runs a section to its end, or as long as it may; what was wrong with it, or None."""
    # A group of its own: compilers leave workers behind that would go on.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"ended after its {seconds:.0f} s; what it had found is kept"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"its process ended with status {status}" if status else None


def _rate(report: Report) -> float | None:
    figure = report.figures.get("matmul_tflops")
    return float(figure["value"]) if isinstance(figure, Mapping) else None
