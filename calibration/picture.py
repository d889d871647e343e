"""Pictures of a calibration: its rows against the policies' limits, and frames of some pairs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from chorus_cli.explain.video import decode_mp4
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from PIL import Image, ImageDraw, ImageFont

from calibration.measure import DONOR, FULL
from services.scheduler.planning.calibration import LIMITS, Row

# Palette of Okabe and Ito, distinguishable with colour blindness.
_COLOURS: Final = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
_SIDE: Final = 160  # upper bound on the longer side of a frame, in pixels
_GAP, _LABEL, _HEAD = 6, 84, 44


@dataclass(frozen=True)
class Example:
    """A pair that the sheet shows.

    Attributes:
        title: What changes, and the kind of edit.
        folder: Folder of its videos, NAME.mp4.
    """

    title: str
    folder: Path


def plot_rows(path: Path, rows: Mapping[str, Sequence[Row]]) -> None:
    """Draws a PNG: for each kind of edit and depth, the cost with its error, and the limits of the policies.

    Args:
        rows: By name of the depth, its rows, also those that no policy allows.
    """
    edits = list(dict.fromkeys(row.edit for found in rows.values() for row in found))
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        height = 1.6 + 0.16 * max(2, len(edits)) * (len(rows) + 1)
        picture = Picture(figsize=(10.0, height), layout="constrained")
        quality, artefacts = picture.subplots(1, 2, sharey=True)
        for number, (name, found) in enumerate(rows.items()):
            places = [edits.index(row.edit) + 0.8 * ((number + 0.5) / len(rows) - 0.5) for row in found]
            costs = [max(row.drift_points, row.alignment_loss_points) for row in found]
            errors = [row.error_points for row in found]
            _draw_costs(quality, costs, errors, places, name, number)
            costs, errors = (
                [getattr(r, f) for r in found] for f in ("artefact_points", "artefact_error_points")
            )
            _draw_costs(artefacts, costs, errors, places, name, number)
        for policy, limit in LIMITS.items():
            _draw_limit(quality, limit.points, policy)
            _draw_limit(artefacts, limit.artefact_points, policy)
        quality.set_title("alignment lost, or drift: the larger", fontsize=9, loc="left")
        artefacts.set_title("increase of the pixels in artefacts", fontsize=9, loc="left")
        for ax in (quality, artefacts):
            ax.set_xlabel("percentage points, with the standard error")
        quality.set_yticks(range(len(edits)), edits)
        quality.set_ylim(len(edits) - 0.4, -0.6)
        handles, labels = quality.get_legend_handles_labels()
        columns = min(6, max(1, len(rows)))
        picture.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
        picture.savefig(path, dpi=130)


def _draw_costs(
    ax: Axes, costs: Sequence[float], errors: Sequence[float], places: Sequence[float], name: str, number: int
) -> None:
    colour = _COLOURS[number % len(_COLOURS)]
    ax.errorbar(costs, places, xerr=errors, fmt="o", markersize=4, color=colour, label=name)


def _draw_limit(ax: Axes, at: float, policy: str) -> None:
    ax.axvline(at, color="#999999", linewidth=0.8, linestyle=":")
    ax.text(at, -0.55, policy, rotation=90, fontsize=7, va="top", ha="right", color="#666666")


def draw_sheet(path: Path, examples: Sequence[Example], depths: Sequence[str]) -> None:
    """Draws a PNG: a column for each pair, a row for the donor, the full computation and each depth."""
    columns = [
        (example, {name: _middle(example, name) for name in (DONOR, FULL, *depths)}) for example in examples
    ]
    if not columns:
        return
    height, width, _ = columns[0][1][DONOR].shape
    size = _LABEL + len(columns) * (width + _GAP), _HEAD + (2 + len(depths)) * (height + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for column, (example, frames) in enumerate(columns):
        x = _LABEL + column * (width + _GAP)
        title = textwrap.wrap(example.title, max(12, width // 6))
        draw.multiline_text((x, 4), "\n".join(title[:3]), fill="black", font=font)
        for row, (name, frame) in enumerate(frames.items()):
            y = _HEAD + row * (height + _GAP)
            if not column:
                draw.text((4, y + height // 2 - 6), name, fill="black", font=font)
            sheet.paste(Image.fromarray(frame), (x, y))
    sheet.save(path, optimize=True)


def _middle(example: Example, name: str) -> np.ndarray:
    """Returns the middle frame of a video, uint8 [H, W, 3], scaled to _SIDE."""
    video = decode_mp4((example.folder / f"{name}.mp4").read_bytes())
    frame = Image.fromarray(video[len(video) // 2])
    scale = _SIDE / max(frame.size)
    resized = frame.resize((round(frame.width * scale), round(frame.height * scale)))
    return np.asarray(resized)
