"""What a section found: figures as they are measured, and notes of what was not."""

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

# Kinds of notes: parts left out and why; errors; what a library refused, in its own words; facts.
NOTES: Final = ("skipped", "failed", "refused", "facts")
_PACKAGES: Final = ("triton", "onnx", "onnxruntime", "onnxscript", "tensorrt", "tensorrt_rtx_cu13")


@dataclass
class Report:
    """Figures and notes, on disk after every one, so that whoever is killed loses little.

    Args:
        path: of the JSON file.
        command: as it was called.
        commit: measured, where the tree does not know it.
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

    def note(self, kind: str, what: str, words: Any) -> None:
        """Raises KeyError for a kind that is none of NOTES."""
        self.notes[kind][what] = words
        self.save()

    def take(self, found: Mapping[str, Any]) -> None:
        """What the file of a section holds."""
        self.figures |= found["figures"]
        for kind, notes in found["notes"].items():
            self.notes[kind] |= notes
        self.hardware |= found["hardware"]
        self.versions |= found["versions"]
        self.save()

    def save(self) -> None:
        part = self.path.with_name(self.path.name + ".part")
        more: dict[str, Any] = {"hardware": self.hardware, "versions": self.versions, "notes": self.notes}
        if self.commit:
            more["commit"] = self.commit
        results.write(part, self.command, self.figures, **more)
        os.replace(part, self.path)  # noqa: PTH105  a reader never sees half a file


@dataclass
class Budget:
    """Seconds, from when it is made."""

    seconds: float
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.begun)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
