"""Report of a section: figures, saved as they are measured, and notes about parts that were not measured."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import results
from bench.results import Figure

# Kinds of notes: omitted parts with reasons; errors; rejections by a library with its message; facts.
NOTES: Final = ("skipped", "failed", "refused", "facts")
_PACKAGES: Final = ("triton", "onnx", "onnxruntime", "onnxscript", "tensorrt", "tensorrt_rtx_cu13")


@dataclass
class Report:
    """Figures and notes, saved after every change so that a killed process loses little.

    Attributes:
        path: JSON file to write.
        command: Command line of the benchmark.
        commit: Measured commit; needed if the tree is not a git checkout.
        figures: Figures by name.
        notes: Notes by kind and name.
        hardware: Properties of the machine.
        versions: Versions of the installed packages.
    """

    path: Path
    command: str
    commit: str | None = None
    figures: dict[str, Figure | Mapping[str, Any]] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=lambda: {kind: {} for kind in NOTES})
    hardware: dict[str, Any] = field(default_factory=results.hardware)
    versions: dict[str, Any] = field(default_factory=lambda: results.versions() | _versions())

    def figure(self, name: str, figure: Figure) -> None:
        self.figures[name] = figure
        self.save()

    def note(self, kind: str, name: str, detail: Any) -> None:
        """Adds a note. Raises KeyError for a kind that is not in NOTES."""
        self.notes[kind][name] = detail
        self.save()

    def merge(self, section: Mapping[str, Any]) -> None:
        """Adds the content of a section's file."""
        self.figures |= section["figures"]
        for kind, notes in section["notes"].items():
            self.notes[kind] |= notes
        self.hardware |= section["hardware"]
        self.versions |= section["versions"]
        self.save()

    def save(self) -> None:
        partial = self.path.with_name(self.path.name + ".part")
        extra: dict[str, Any] = {"hardware": self.hardware, "versions": self.versions, "notes": self.notes}
        if self.commit:
            extra["commit"] = self.commit
        results.write(partial, self.command, self.figures, **extra)
        os.replace(partial, self.path)  # noqa: PTH105  a reader never sees an incomplete file


@dataclass
class Budget:
    """Time budget, in seconds from its creation."""

    seconds: float
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.begun)


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
