"""Paired comparisons of reuse with its rivals, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from bench import results
from bench.results import Figure
from models.shapes.figures import distance_ratio
from models.shapes.measure import Measurement

# Pairs of cells at equal computation, and the host against the same student without it.
RIVALS: Final = (
    ("host_k3", "rerun_one_step"),
    ("host_k2", "rerun_two_step"),
    ("draft_k3", "rerun_two_step"),
    ("draft_k3", "host_k2"),
    ("host_k3", "plain_one_step"),
    ("host_k3", "base_k3"),
    ("host_k3", "host_full_k3"),
)
NAMES: Final = {
    "host_k3": "the host at K1 = 3",
    "host_k2": "the host at K1 = 2",
    "draft_k3": "a draft of step 4, repeated",
    "rerun_one_step": "the student distilled for one step",
    "rerun_two_step": "the student distilled for two steps",
    "plain_one_step": "one step of the plain student",
    "base_k3": "K1 = 3 without the host adapter",
    "host_full_k3": "the fully trained host at K1 = 3",
}


@dataclass(frozen=True)
class Measure:
    """A measure of a comparison.

    Attributes:
        name: End of the figure's name.
        words: Name in the verdict.
        neutral: Value that means equality.
        higher_wins: Whether a higher value is better for the first cell.
    """

    name: str
    words: str
    neutral: float
    higher_wins: bool


MEASURES: Final = (
    Measure("alignment_points", "alignment", 0.0, True),
    Measure("artefact_points", "artefacts", 0.0, False),
    Measure("distance_factor", "distance", 1.0, False),
    Measure("kept_points", "layout kept", 0.0, True),
)


def compare_cells(
    prefix: str, first: Sequence[Measurement], second: Sequence[Measurement], truth: Tensor | None
) -> dict[str, Figure]:
    """Computes paired differences, first minus second; and the ratio of distances, if `truth` is given."""
    pairs = list(zip(first, second, strict=True))
    figures = {
        f"{prefix}_alignment_points": results.paired([(a.right["all"], b.right["all"]) for a, b in pairs]),
        f"{prefix}_artefact_points": results.paired([(a.has_artefact, b.has_artefact) for a, b in pairs]),
        f"{prefix}_kept_points": results.paired([(a.kept["all"], b.kept["all"]) for a, b in pairs]),
    }
    if truth is not None:
        figures[f"{prefix}_distance_factor"] = distance_ratio(first, second, truth)
    return figures


def compare_rivals(
    columns: Mapping[str, Sequence[Measurement]], groups: Mapping[str, Sequence[int]], truth: Tensor
) -> dict[str, Figure]:
    """Compares the cells of RIVALS in groups of cases; distances only in groups of 100 or more."""
    figures: dict[str, Figure] = {}
    for first, second in RIVALS:
        if first not in columns or second not in columns:
            continue
        for group, chosen in groups.items():
            if not chosen:
                continue
            a, b = ([columns[name][i] for i in chosen] for name in (first, second))
            prefix = f"{first}_vs_{second}_{group}".rstrip("_")
            figures |= compare_cells(prefix, a, b, truth[list(chosen)] if len(chosen) >= 100 else None)
    return figures


def describe_outcome(figure: Figure, measure: Measure) -> str:
    """Returns "wins", "loses" or "ties" for the first cell: a tie if the interval contains equality."""
    low, high = figure.ci95 or (figure.value, figure.value)
    if low <= measure.neutral <= high:
        return "ties"
    return "wins" if (figure.value > measure.neutral) == measure.higher_wins else "loses"


def write_verdict(figures: Mapping[str, Figure], groups: Mapping[str, str]) -> list[str]:
    """Returns sentences that say who wins where.

    Args:
        figures: Result of `compare_rivals`.
        groups: Words for the groups that are reported, by name.
    """
    sentences = []
    for first, second in RIVALS:
        for group, words in groups.items():
            prefix = f"{first}_vs_{second}_{group}".rstrip("_")
            parts = [
                f"{describe_outcome(figure, m)} in {m.words} ({_show(figure)})"
                for m in MEASURES
                if (figure := figures.get(f"{prefix}_{m.name}"))
            ]
            if parts:
                sentences.append(f"{words}, {NAMES[first]} against {NAMES[second]}: it {', '.join(parts)}.")
    return sentences


def _show(figure: Figure) -> str:
    unit = " points" if figure.unit == "percentage points" else "x"
    interval = f", {figure.ci95[0]:.3g} to {figure.ci95[1]:.3g}" if figure.ci95 else ""
    sign = "+" if unit == " points" else ""
    return f"{figure.value:{sign}.3g}{unit}{interval}"
