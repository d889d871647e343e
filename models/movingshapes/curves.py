"""Plots the training curves: `python -m models.movingshapes.curves` writes curves/curves.png.

Shows loss and accuracy (four steps, calibration split, unseen phrasings) by update, from the committed rows
of the training runs in curves/.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("curves")


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a run. A resumed run repeats the updates after its checkpoint; the later row is
    used."""
    rows = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    return [row for _, row in sorted({row["update"]: row for row in rows}.items())]


def main() -> None:
    from matplotlib.figure import Figure  # part of the extra `eval`

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for path in sorted(FOLDER.glob("*.jsonl")):
        rows = read_curve(path)
        evaluated = [row for row in rows if "calibration" in row]
        left.plot([r["update"] for r in rows], [r["loss_at_1"] for r in rows], label=path.stem)
        right.plot(
            [r["update"] for r in evaluated],
            [r["calibration"]["all"] for r in evaluated],
            "o-",
            label=path.stem,
        )
    left.set(xlabel="update", ylabel="loss at σ = 1", xscale="log", yscale="log")
    right.set(xlabel="update", ylabel="all attributes right", xscale="log", ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(FOLDER / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
