"""The figures as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import PercentFormatter

from evaluation.methods import FULL
from evaluation.results import Figure
from evaluation.tables import ALL_KINDS, name_of

# Okabe and Ito's palette, which people with colour blindness can tell apart; the first is of the full way.
_COLOURS: Final = ("#666666", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS: Final = "os^D"  # the next where the colours begin again
_SHARE: Final = "share of videos"
_TIMES: Final = "times, median"
_PANELS: Final = (
    ("alignment_all", "shows all that the prompt asks", _SHARE),
    ("donor_drift_any", "shows what only the donor's prompt asked", _SHARE),
    ("ssim", "like the full computation", "SSIM"),
    ("speedup_p50", "faster than the full computation", _TIMES),
)


def plot(path: Path, figures: Mapping[str, Figure], ways: Sequence[str], kinds: Sequence[str]) -> None:
    """Draws a PNG: a panel for each figure there is, a row for each kind of edit, a dot for each way.

    Bars are 95 % intervals. Ways with reuse count hits alone.
    """
    panels = [panel for panel in _PANELS if any(name_of(w, ALL_KINDS, panel[0]) in figures for w in ways)]
    rows = [ALL_KINDS, *kinds]
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        picture = Picture(
            figsize=(2.0 + 3.0 * len(panels), 1.6 + 0.15 * len(rows) * len(ways)), layout="constrained"
        )
        axes = picture.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (figure, title, label) in zip(axes, panels, strict=True):
            _panel(ax, figures, figure, label, ways, rows)
            ax.set_title(title, fontsize=9, loc="left")
            ax.set_xlabel(label)
        axes[0].set_yticks(range(len(rows)), [_row_label(figures, row) for row in rows])
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        handles, labels = axes[0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside upper center", ncols=min(5, len(ways)), frameon=False)
        picture.savefig(path, dpi=150)


def _panel(
    ax: Axes,
    figures: Mapping[str, Figure],
    figure: str,
    label: str,
    ways: Sequence[str],
    rows: Sequence[str],
) -> None:
    for i, way in enumerate(ways):
        offset = (i - (len(ways) - 1) / 2) * 0.8 / len(ways)
        found = [(y + offset, figures.get(name_of(way, kind, figure))) for y, kind in enumerate(rows)]
        points = [(y, one.value, one.ci95 or (one.value, one.value)) for y, one in found if one is not None]
        ax.errorbar(
            [x for _, x, _ in points],
            [y for y, _, _ in points],
            xerr=[[x - low for _, x, (low, _) in points], [high - x for _, x, (_, high) in points]],
            fmt=_MARKERS[i // len(_COLOURS) % len(_MARKERS)],
            markersize=4,
            linewidth=1.2,
            color=_COLOURS[i % len(_COLOURS)],
            label=_legend(figures, way),
        )
    if label == _SHARE:
        ax.set_xlim(-0.02, 1.02)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    elif label == _TIMES:
        ax.axvline(1, color="#999999", linewidth=1, zorder=1)
    for edge in range(1, len(rows)):
        ax.axhline(edge - 0.5, color="#DDDDDD", linewidth=1.5 if edge == 1 else 0.7, zorder=0)
    ax.grid(axis="x", color="#EEEEEE")
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)


def _legend(figures: Mapping[str, Figure], way: str) -> str:
    if way == FULL:
        return "in full"
    hits = figures.get(name_of(way, ALL_KINDS, "hit_share"))
    return way.replace("_", " ") if hits is None else f"{way}, {round(hits.value * hits.n)} hits of {hits.n}"


def _row_label(figures: Mapping[str, Figure], kind: str) -> str:
    n = figures[name_of(FULL, kind, "seconds_p50")].n
    return f"{'all edits' if kind == ALL_KINDS else kind}\nn = {n}"
