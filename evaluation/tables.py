"""Tables of figures for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Group
from rich.table import Table

from evaluation.figures import MISS
from evaluation.methods import FULL
from evaluation.prompts import ALL_KINDS, OPENING
from evaluation.quality_figures import RENDERS
from evaluation.results import Figure
from models.shapes.edits import OPENING as OPENING_KINDS
from models.shapes.yardstick.comparison import FIELDS

_COST: Final = {
    "hit_share": "hits",
    "steps_run": "steps",
    "seconds_p50": "seconds",
    "speedup_p50": "speed-up",
    "whole_set_speedup": "with misses",
}
_QUALITY: Final = {
    "alignment_all": "aligned",
    "donor_drift_any": "drift",
    "psnr_db": "PSNR dB",
    "ssim": "SSIM",
    "seam": "seam",
}
# Speed next to quality, for every method.
_METHODS: Final = {
    "speedup_p50": "speed-up",
    "alignment_all": "aligned",
    "artefact_rate": "arte-\nfacts",
    "sharpness": "sharp-\nness",
    "distance": "distance",
    "distance_excess": "less\nfull's",
    "layout_kept_all": "layout\nkept",
    "diversity_mean": "diver-\nsity",
}
_ARTEFACTS: Final = {
    "artefact_rate": "videos",
    "artefact_share": "pixels",
    "donor_share_of_residue": "donor's\nshare",
    "sharpness": "rims",
    "texture_sharpness": "texture",
    "layout_kept_all": "layout\nkept",
}
# Figures over single edits, except the last, which is over unrelated requests.
_SINGLE_EDIT_COLUMNS: Final = {
    "single_edit_hit_share": "hits",
    "single_edit_speedup_p50": "speed-up",
    "single_edit_alignment_ratio": "aligned\n÷ full",
    "single_edit_drift_points": "drift\npoints",
    "single_edit_layout_kept": "layout\nkept",
    "single_edit_full_layout_kept": "by full",
    "false_reuse_rate": "false\nreuse",
}


def figure_name(method: str, kind: str, figure: str) -> str:
    """Returns the name of a figure; ALL_KINDS means all kinds of edits together."""
    return f"{method}.{figure}" if kind == ALL_KINDS else f"{method}.{kind}.{figure}"


def build_tables(figures: Mapping[str, Figure], methods: Sequence[str], kinds: Sequence[str]) -> Group:
    """Builds tables of speed and quality by method, by kind of edit, of the single edits, and by attribute.

    Each value is followed by its 95 % interval on the next line. `n` is the number of requests that count:
    for methods with reuse the hits.
    """
    rows = [ALL_KINDS, *kinds]
    if any(name.startswith(f"{FULL}.{OPENING}.") for name in figures):
        rows.append(OPENING)
    tables = [
        _by_method(figures, "methods, over all kinds", _METHODS, (*methods, RENDERS), with_n=False),
        _by_kind(figures, "seconds", _COST, methods, rows),
        _by_kind(figures, "quality", _QUALITY, methods, rows),
    ]
    if f"{FULL}.artefact_rate" in figures:
        tables.append(_by_kind(figures, "artefacts, sharpness, layout", _ARTEFACTS, methods, rows))
    tables.append(_by_method(figures, "single edits", _SINGLE_EDIT_COLUMNS, methods))
    for figure, title in (("alignment", "aligned"), ("donor_drift", "drift")):
        if any(name.startswith(f"{FULL}.{figure}_") for name in figures):
            tables.append(_by_attribute(figures, figure, title, methods))
    return Group(*tables)


def _by_kind(
    figures: Mapping[str, Figure],
    title: str,
    columns: Mapping[str, str],
    methods: Sequence[str],
    kinds: Sequence[str],
) -> Table:
    shown = [
        key for key in columns if any(figure_name(method, ALL_KINDS, key) in figures for method in methods)
    ]
    table = _table(title, "edit", "method", "n", *(columns[key] for key in shown))
    for kind in kinds:
        for method in methods:
            counted = figures.get(figure_name(method, kind, "seconds_p50"))
            cells = [_cell(figures.get(figure_name(method, kind, key))) for key in shown]
            table.add_row(
                _kind_label(kind) if method == methods[0] else "",
                method,
                str(counted.n if counted else 0),
                *cells,
            )
        miss = figures.get(f"{MISS}.seconds_p50")
        if kind == ALL_KINDS and miss is not None and "seconds_p50" in shown:
            cells = [_cell(miss) if key == "seconds_p50" else "" for key in shown]
            table.add_row("", MISS, str(miss.n), *cells)
    return table


def _by_method(
    figures: Mapping[str, Figure],
    title: str,
    columns: Mapping[str, str],
    methods: Sequence[str],
    with_n: bool = True,
) -> Table:
    """Builds a table with a row for each method that has a figure, and a column for each figure present."""
    shown = [key for key in columns if any(f"{method}.{key}" in figures for method in methods)]
    table = _table(title, "method", *(columns[key] for key in shown))
    for method in methods:
        cells = [figures.get(f"{method}.{key}") for key in shown]
        if any(cells):
            table.add_row(method, *(_cell(cell, with_n) for cell in cells))
    return table


def _by_attribute(figures: Mapping[str, Figure], figure: str, title: str, methods: Sequence[str]) -> Table:
    table = _table(title, "attribute", *methods)
    for attribute in (*FIELDS, "all", "any"):
        cells = [figures.get(f"{method}.{figure}_{attribute}") for method in methods]
        if any(cells):
            table.add_row(attribute, *map(_cell, cells))
    return table


def _kind_label(kind: str) -> str:
    return f"{kind} (opens)" if kind in OPENING_KINDS else kind


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
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    return table


def _cell(figure: Figure | None, with_n: bool = True) -> str:
    if figure is None:
        return ""
    bounds = (format_number(bound, figure.unit) for bound in figure.ci95 or ())
    among = f" of {figure.n}" if with_n and figure.unit == "share" else ""
    return f"{format_number(figure.value, figure.unit)}{among}\n{'–'.join(bounds)}"


def format_number(value: float, unit: str) -> str:
    """Formats a value for reading: shares in percent, other values with about three digits."""
    if unit == "share":
        return f"{value:.0%}"
    if unit == "percentage points":
        return f"{value:.1f}"
    if unit in ("share of pixels", "of the full range"):
        return f"{value:.3f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
