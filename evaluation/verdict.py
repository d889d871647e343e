"""Verdict of an evaluation in words, computed from its figures by pure functions.

A comparison is won or lost if its interval excludes 0, tied if the interval contains 0 and lies within
MARGINS, and otherwise undecided: more requests are needed. Intervals are not corrected for the number of
comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from evaluation.comparisons import ALIGNMENT, ARTEFACTS, DISTANCE, LAYOUT, SHARPNESS, SPEEDUP, VERSUS
from evaluation.methods import FULL
from evaluation.results import Figure
from evaluation.scenes import SINGLE_EDITS

Outcome = Literal["wins", "ties", "loses", "undecided"]

# Largest difference, in either direction, that counts as a tie.
MARGINS: Final[Mapping[str, float]] = {
    ALIGNMENT: 5.0,
    ARTEFACTS: 5.0,
    LAYOUT: 5.0,
    SHARPNESS: 0.05,
    DISTANCE: 0.05,
}
LEVELS: Final = (0.95, 0.85)  # of the full computation's alignment
_WORDS: Final = {
    ALIGNMENT: "alignment",
    ARTEFACTS: "artefacts",
    LAYOUT: "layout kept",
    SHARPNESS: "sharpness",
    DISTANCE: "distance to renders",
}
_HEADINGS: Final[Mapping[Outcome, str]] = {
    "wins": "wins in",
    "ties": "ties in",
    "loses": "loses in",
    "undecided": "undecided at this n:",
}


def decide(figure: Figure, margin: float) -> Outcome:
    """Returns the outcome of a difference, of which a value above 0 is in favour of reuse."""
    if figure.ci95 is None:
        return "undecided"
    low, high = figure.ci95
    if low > 0:
        return "wins"
    if high < 0:
        return "loses"
    return "ties" if max(-low, high) <= margin else "undecided"


def write_verdict(figures: Mapping[str, Figure], reusing: Sequence[str], rivals: Sequence[str]) -> list[str]:
    """Returns the verdict, one sentence or two per line.

    Args:
        reusing: Methods with reuse.
        rivals: Methods without reuse, other than the full computation.
    """
    lines = [line for level in LEVELS if (line := _name_fastest(figures, (*reusing, *rivals), level))]
    for method in reusing:
        lines += [line for rival in rivals if (line := _compare(figures, method, rival))]
    lines += [line for method in reusing if (line := _describe_layout(figures, method))]
    if missing := _list_missing(figures, reusing, rivals):
        lines.append(f"Not measured, because n is too small or no scene could be read: {', '.join(missing)}.")
    return lines


def _name_fastest(figures: Mapping[str, Figure], methods: Sequence[str], level: float) -> str | None:
    """Names the fastest method that keeps a share of the full computation's alignment."""
    ratios = {m: f for m in methods if (f := figures.get(f"{m}.single_edit_alignment_ratio"))}
    speeds = {m: f for m in methods if (f := figures.get(f"{m}.single_edit_speedup_p50"))}
    known = [m for m in ratios if m in speeds]
    if not known:
        return None
    good = [m for m in known if ratios[m].value >= level and speeds[m].value > 1]
    if not good:
        return f"No method is faster than full computation with {level:.0%} of its alignment."
    best = max(good, key=lambda m: speeds[m].value)
    interval = ratios[best].ci95
    certain = interval is not None and interval[0] >= level
    doubt = "" if certain else f", though the interval of the latter reaches below {level:.0%}"
    return (
        f"Fastest with at least {level:.0%} of full computation's alignment in single edits: {best}, "
        f"{speeds[best].value:.2f}× at {_percent(ratios[best])}{doubt}."
    )


def _compare(figures: Mapping[str, Figure], reuse: str, rival: str) -> str | None:
    prefix = f"{VERSUS}.{reuse}.{rival}"
    speed = figures.get(f"{prefix}.{SPEEDUP}")
    if speed is None:
        return None
    outcomes = {
        name: decide(figure, MARGINS[measure])
        for measure, name in _WORDS.items()
        if (figure := figures.get(f"{prefix}.{measure}"))
    }
    by_kind = {
        kind: decide(figure, MARGINS[ALIGNMENT])
        for kind in SINGLE_EDITS
        if (figure := figures.get(f"{prefix}.{kind}.{ALIGNMENT}"))
    }
    line = f"{reuse} against {rival}, {speed.n} hits, {speed.value:.2f}× its speed: {_group(outcomes)}."
    if by_kind:
        line += f" Alignment by kind: {_group(by_kind)}."
    return line


def _group(outcomes: Mapping[str, Outcome]) -> str:
    groups = []
    for outcome, heading in _HEADINGS.items():
        if names := [name for name, of_name in outcomes.items() if of_name == outcome]:
            groups.append(f"{heading} {', '.join(names)}")
    return "; ".join(groups) or "nothing to compare"


def _describe_layout(figures: Mapping[str, Figure], method: str) -> str | None:
    kept = figures.get(f"{method}.single_edit_layout_kept")
    full = figures.get(f"{method}.single_edit_full_layout_kept")
    if kept is None or full is None:
        return None
    return (
        f"Hits of {method} keep the donor's layout where the prompt did not change in {_percent(kept)} of "
        f"{kept.n}; full computation of the same requests, from other noise, in {_percent(full)}."
    )


def _list_missing(figures: Mapping[str, Figure], reusing: Sequence[str], rivals: Sequence[str]) -> list[str]:
    compared = [f"{VERSUS}.{reuse}.{rival}" for reuse in reusing for rival in (FULL, *rivals)]
    compared = [prefix for prefix in compared if f"{prefix}.{SPEEDUP}" in figures]
    return [
        name
        for measure, name in _WORDS.items()
        if compared and not any(f"{prefix}.{measure}" in figures for prefix in compared)
    ]


def _percent(figure: Figure) -> str:
    if figure.ci95 is None:
        return f"{figure.value:.0%}"
    return f"{figure.value:.0%} ({figure.ci95[0]:.0%}–{figure.ci95[1]:.0%})"
