"""The figures on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Group
from rich.table import Table

from evaluation.figures import MISS
from evaluation.methods import FULL
from evaluation.results import Figure
from models.movingshapes.analyzer import FIELDS

ALL_KINDS: Final = "all"
_COST: Final = {
    "hit_share": "hits",
    "steps_run": "steps",
    "seconds_p50": "seconds",
    "speedup_p50": "faster",
    "whole_set_speedup": "whole set",
}
_QUALITY: Final = {
    "alignment_all": "aligned",
    "donor_drift_any": "drift",
    "psnr_db": "PSNR dB",
    "ssim": "SSIM",
    "seam": "seam",
}
# Over single edits, but the last.
_JUDGED: Final = {
    "single_edit_hit_share": "hits",
    "single_edit_speedup_p50": "faster",
    "single_edit_alignment_ratio": "aligned ÷ full",
    "single_edit_drift_points": "drift points",
    "false_reuse_rate": "false reuse",
}


def name_of(way: str, kind: str, figure: str) -> str:
    """A figure's name; the kind ALL_KINDS is all of them together."""
    return f"{way}.{figure}" if kind == ALL_KINDS else f"{way}.{kind}.{figure}"


def tables(figures: Mapping[str, Figure], ways: Sequence[str], kinds: Sequence[str]) -> Group:
    """What each way costs, and what it shows, by kind of edit; and by attribute over all edits.

    Under each value stands its 95 % interval. `n` is how many requests count: for ways with reuse the hits.
    """
    rows = [ALL_KINDS, *kinds]
    found = [
        _by_kind(figures, "seconds", _COST, ways, rows),
        _by_kind(figures, "quality", _QUALITY, ways, rows),
    ]
    judged = [way for way in ways if any(f"{way}.{key}" in figures for key in _JUDGED)]
    if judged:
        found.append(_by_way(figures, "single edits", _JUDGED, judged))
    for figure, title in (("alignment", "aligned"), ("donor_drift", "drift")):
        if any(name.startswith(f"{FULL}.{figure}_") for name in figures):
            found.append(_by_attribute(figures, figure, title, ways))
    return Group(*found)


def _by_kind(
    figures: Mapping[str, Figure],
    title: str,
    columns: Mapping[str, str],
    ways: Sequence[str],
    kinds: Sequence[str],
) -> Table:
    shown = [key for key in columns if any(name_of(way, ALL_KINDS, key) in figures for way in ways)]
    table = _table(title, "edit", "way", "n", *(columns[key] for key in shown))
    for kind in kinds:
        for way in ways:
            counted = figures.get(name_of(way, kind, "seconds_p50"))
            cells = [_cell(figures.get(name_of(way, kind, key))) for key in shown]
            table.add_row(kind if way == ways[0] else "", way, str(counted.n if counted else 0), *cells)
        miss = figures.get(f"{MISS}.seconds_p50")
        if kind == ALL_KINDS and miss is not None and "seconds_p50" in shown:
            cells = [_cell(miss) if key == "seconds_p50" else "" for key in shown]
            table.add_row("", MISS, str(miss.n), *cells)
    return table


def _by_way(
    figures: Mapping[str, Figure], title: str, columns: Mapping[str, str], ways: Sequence[str]
) -> Table:
    table = _table(title, "way", *columns.values())
    for way in ways:
        table.add_row(way, *(_cell(figures.get(f"{way}.{key}")) for key in columns))
    return table


def _by_attribute(figures: Mapping[str, Figure], figure: str, title: str, ways: Sequence[str]) -> Table:
    table = _table(title, "attribute", *ways)
    for attribute in (*FIELDS, "all", "any"):
        found = [figures.get(f"{way}.{figure}_{attribute}") for way in ways]
        if any(found):
            table.add_row(attribute, *map(_cell, found))
    return table


def _table(title: str, first: str, *headings: str) -> Table:
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "way" else "right", no_wrap=True)
    return table


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    low_high = (number(bound, figure.unit) for bound in figure.ci95 or ())
    among = f" of {figure.n}" if figure.unit == "share" else ""
    return f"{number(figure.value, figure.unit)}{among}\n{'–'.join(low_high)}"


def number(value: float, unit: str) -> str:
    """A value as people read it: shares in percent, the rest with three digits or so."""
    if unit == "share":
        return f"{value:.0%}"
    if unit == "percentage points":
        return f"{value:.1f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
