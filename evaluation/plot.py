"""Plot of the figures: one panel per figure, one row per kind of edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import PercentFormatter

from evaluation.methods import FULL
from evaluation.prompts import ALL_KINDS
from evaluation.results import Figure
from evaluation.tables import figure_name

# Palette of Okabe and Ito, distinguishable with colour blindness. The first colour is for the full
# computation.
_COLOURS: Final = ("#666666", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS: Final = "os^D"  # one for each pass through the colours
_SHARE: Final = "share of videos"
_SPEEDUP: Final = "speed-up (×), median"
_PANELS: Final = (
    ("alignment_all", "alignment: video matches its prompt", _SHARE),
    ("donor_drift_any", "drift: video follows the donor's prompt", _SHARE),
    ("artefact_rate", "videos with a visible artefact", _SHARE),
    ("layout_kept_all", "the donor's layout is kept", _SHARE),
    ("sharpness", "sharpness of objects' rims", "of renders"),
    ("ssim", "similarity to full computation", "SSIM"),
    ("speedup_p50", "speed-up over full computation", _SPEEDUP),
)


def plot(path: Path, figures: Mapping[str, Figure], methods: Sequence[str], kinds: Sequence[str]) -> None:
    """Draws a PNG: a panel for each available figure, a row for each kind of edit, a dot for each method.

    Bars are 95 % intervals. For methods with reuse only hits count.
    """
    panels = [
        panel for panel in _PANELS if any(figure_name(m, ALL_KINDS, panel[0]) in figures for m in methods)
    ]
    rows = [ALL_KINDS, *kinds]
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        picture = Picture(
            figsize=(2.0 + 3.0 * len(panels), 1.6 + 0.15 * len(rows) * len(methods)), layout="constrained"
        )
        axes = picture.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (figure, title, label) in zip(axes, panels, strict=True):
            _panel(ax, figures, figure, label, methods, rows)
            ax.set_title(title, fontsize=9, loc="left")
            ax.set_xlabel(label)
        axes[0].set_yticks(range(len(rows)), [_row_label(figures, row) for row in rows])
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        handles, labels = axes[0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside upper center", ncols=min(5, len(methods)), frameon=False)
        picture.savefig(path, dpi=150)


def _panel(
    ax: Axes,
    figures: Mapping[str, Figure],
    figure: str,
    label: str,
    methods: Sequence[str],
    rows: Sequence[str],
) -> None:
    for i, method in enumerate(methods):
        offset = (i - (len(methods) - 1) / 2) * 0.8 / len(methods)
        values = [(y + offset, figures.get(figure_name(method, kind, figure))) for y, kind in enumerate(rows)]
        points = [(y, f.value, f.ci95 or (f.value, f.value)) for y, f in values if f is not None]
        ax.errorbar(
            [x for _, x, _ in points],
            [y for y, _, _ in points],
            xerr=[[x - low for _, x, (low, _) in points], [high - x for _, x, (_, high) in points]],
            fmt=_MARKERS[i // len(_COLOURS) % len(_MARKERS)],
            markersize=4,
            linewidth=1.2,
            color=_COLOURS[i % len(_COLOURS)],
            label=_legend(figures, method),
        )
    if label == _SHARE:
        ax.set_xlim(-0.02, 1.02)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    elif label == _SPEEDUP:
        ax.axvline(1, color="#999999", linewidth=1, zorder=1)
    for edge in range(1, len(rows)):
        ax.axhline(edge - 0.5, color="#DDDDDD", linewidth=1.5 if edge == 1 else 0.7, zorder=0)
    ax.grid(axis="x", color="#EEEEEE")
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)


def _legend(figures: Mapping[str, Figure], method: str) -> str:
    if method == FULL:
        return "full computation"
    hits = figures.get(figure_name(method, ALL_KINDS, "hit_share"))
    if hits is None:
        return method.replace("_", " ")
    return f"{method}, {round(hits.value * hits.n)} hits of {hits.n}"


def _row_label(figures: Mapping[str, Figure], kind: str) -> str:
    n = figures[figure_name(FULL, kind, "seconds_p50")].n
    return f"{'all edits' if kind == ALL_KINDS else kind}\nn = {n}"
