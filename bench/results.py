"""Figures of this project's benches: the yardstick's format, kept in `bench/results/`."""

from __future__ import annotations

from typing import Final

from yardstick.results import (
    ROOT,
    Figure,
    commit,
    hardware,
    mean,
    median,
    ratio,
    read,
    share,
    single,
    versions,
    write,
)

__all__ = [
    "RESULTS",
    "ROOT",
    "Figure",
    "commit",
    "hardware",
    "mean",
    "median",
    "ratio",
    "read",
    "share",
    "single",
    "versions",
    "write",
]

RESULTS: Final = ROOT / "bench" / "results"
