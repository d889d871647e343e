"""Plots the training curves: `python -m models.shapes.curves` writes curves/curves.png.

Shows the loss by time spent, for each run in curves/ (copies of the runs' curve.jsonl), at pure noise, where
a run decides what the prompt leaves open, and at the levels at which edges are drawn. The time is that of the
device that the run was on: two threads of a CPU, or a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).with_name("curves")
PANELS: Final = {"loss_from_0.999": "loss at σ = 1", "loss_from_0.5": "loss at σ from 0.5 to 0.8"}


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a run. A resumed run repeats the updates after its checkpoint; the later row is
    used."""
    rows = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    return [row for _, row in sorted({row["update"]: row for row in rows}.items())]


def main() -> None:
    from matplotlib import colormaps  # part of the extra `eval`
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for i, path in enumerate(sorted(FOLDER.glob("*.jsonl"))):
            rows = [row for row in read_curve(path) if key in row]
            colour, name = colormaps["tab20"](i % 20), path.stem
            axes.plot([r["seconds"] / 60 for r in rows], [r[key] for r in rows], label=name, color=colour)
        axes.set(xlabel="minutes", ylabel=label, xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(FOLDER / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
