"""From measurements to figures. Names are `<way>[.<kind of edit>].<figure>`: `balanced.colour.psnr_db`.

What reuse does to quality is told over hits alone, because a miss is the full computation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from evaluation import results
from evaluation.measure import Case, Outcome, Served
from evaluation.methods import FULL
from evaluation.results import Figure
from evaluation.scenes import SINGLE_EDITS, UNRELATED, Verdict
from models.movingshapes.analyzer import FIELDS

MISS: Final = "miss"
ATTRIBUTES: Final = (*FIELDS, "all")


def figures_of(outcomes: Sequence[Outcome], reusing: Sequence[str]) -> dict[str, Figure]:
    """Every figure that has a measurement behind it, for all kinds together and for each.

    Args:
        reusing: the ways that look into the cache.
    """
    cases = [case for outcome in outcomes for case in outcome.cases]
    figures = _misses(outcomes, reusing)
    for name, some in {"": cases, **{f"{kind}.": of_kind(cases, kind) for kind in kinds_of(cases)}}.items():
        for way in ways_of(cases):
            found = _reused(some, way) if way in reusing else _computed(some, way)
            figures |= {f"{way}.{name}{key}": figure for key, figure in found.items()}
    for way in reusing:
        found = _single_edits(cases, way) | _false_reuse(cases, way)
        figures |= {f"{way}.{key}": figure for key, figure in found.items()}
    return figures


def kinds_of(cases: Iterable[Case]) -> list[str]:
    """The kinds of edits, in the order in which they come."""
    return list(dict.fromkeys(case.kind for case in cases))


def of_kind(cases: Iterable[Case], kind: str) -> list[Case]:
    return [case for case in cases if case.kind == kind]


def ways_of(cases: Iterable[Case]) -> list[str]:
    return list(dict.fromkeys(way for case in cases for way in case.ways))


def _misses(outcomes: Sequence[Outcome], reusing: Sequence[str]) -> dict[str, Figure]:
    seconds = [o.miss_seconds for o in outcomes if o.miss_seconds is not None]
    for case in (case for outcome in outcomes for case in outcome.cases):
        seconds += [case.ways[way].seconds for way in reusing if case.ways[way].source == "none"]
    return {f"{MISS}.seconds_p50": results.median(seconds, "s")} if seconds else {}


def _reused(cases: Sequence[Case], way: str) -> dict[str, Figure]:
    """The figures of a way with reuse: over the requests that found their own donor, or none."""
    known, hits = _known(cases, way), _hits(cases, way)
    if not known:
        return {}
    return {
        "hit_share": results.share(len(hits), len(known)),
        "whole_set_speedup": _speedup(known, way),
        **(_computed(hits, way) if hits else {}),
    }


def _known(cases: Sequence[Case], way: str) -> list[Case]:
    """The requests that found their own donor, or none."""
    return [case for case in cases if case.ways[way].source != "other"]


def _hits(cases: Sequence[Case], way: str) -> list[Case]:
    return [case for case in cases if case.ways[way].source == "donor"]


def _single_edits(cases: Sequence[Case], way: str) -> dict[str, Figure]:
    """What reuse is judged by: its hits among requests that differ from their donor in one edit, against the
    full computation of the very same requests.
    """
    edits = [case for case in cases if case.kind in SINGLE_EDITS]
    known, hits = _known(edits, way), _hits(edits, way)
    if not known:
        return {}
    figures = {"single_edit_hit_share": results.share(len(hits), len(known))}
    if not hits:
        return figures
    figures["single_edit_speedup_p50"] = _speedup_p50(hits, way)
    both = _verdicts(hits, way)
    if any(full.right["all"] for full, _ in both):
        figures["single_edit_alignment_ratio"] = results.ratio(
            [this.right["all"] for _, this in both], [full.right["all"] for full, _ in both], "1"
        )
    drifts = [
        100.0 * (any(this.followed.values()) - any(full.followed.values()))
        for full, this in both
        if full.followed
    ]
    if drifts:
        figures["single_edit_drift_points"] = results.mean(drifts, "percentage points")
    return figures


def _false_reuse(cases: Sequence[Case], way: str) -> dict[str, Figure]:
    """The share of requests that have nothing in common with their donor and reused it."""
    unrelated = _known(of_kind(cases, UNRELATED), way)
    if not unrelated:
        return {}
    return {"false_reuse_rate": results.share(len(_hits(unrelated, way)), len(unrelated))}


def _computed(cases: Sequence[Case], way: str) -> dict[str, Figure]:
    """A way's figures over all of some cases, at least one."""
    served = [case.ways[way] for case in cases]
    figures = {
        "seconds_p50": results.median([one.seconds for one in served], "s"),
        "steps_run": results.mean([one.steps_run for one in served], "steps"),
        **_alignment(served),
        **_drift(served),
    }
    if way == FULL:
        return figures
    saved = [case.ways[FULL].steps_run - case.ways[way].steps_run for case in cases]
    figures["speedup_p50"] = _speedup_p50(cases, way)
    figures["steps_saved"] = results.mean(saved, "steps")
    near: dict[str, tuple[str, Callable[[Served], float | None]]] = {
        "psnr_db": ("dB", lambda one: one.psnr),
        "ssim": ("1", lambda one: one.ssim),
        "seam": ("levels of 255", lambda one: one.seam),
    }
    for name, (unit, value) in near.items():
        values = [found for one in served if (found := value(one)) is not None]
        if values:
            figures[name] = results.mean(values, unit)
    return figures | _loss(cases, way)


def _speedup_p50(cases: Sequence[Case], way: str) -> Figure:
    """The median of each request's seconds in full by its seconds this way."""
    return results.median([case.ways[FULL].seconds / case.ways[way].seconds for case in cases], "x")


def _speedup(cases: Sequence[Case], way: str) -> Figure:
    """Of all of some requests together: seconds in full by seconds this way."""
    full = [case.ways[FULL].seconds for case in cases]
    return results.ratio(full, [case.ways[way].seconds for case in cases])


def _alignment(served: Sequence[Served]) -> dict[str, Figure]:
    """The shares of videos that show what their prompt asks."""
    right = [one.verdict.right for one in served if one.verdict is not None]
    if not right:
        return {}
    return {
        f"alignment_{name}": results.share(sum(one[name] for one in right), len(right)) for name in ATTRIBUTES
    }


def _drift(served: Sequence[Served]) -> dict[str, Figure]:
    """The shares of videos that show what only the donor's prompt asked, where the two prompts differ."""
    followed = [one.verdict.followed for one in served if one.verdict is not None and one.verdict.followed]
    shares = {name: [one[name] for one in followed if name in one] for name in FIELDS}
    shares["any"] = [any(one.values()) for one in followed]
    return {
        f"donor_drift_{name}": results.share(sum(values), len(values))
        for name, values in shares.items()
        if values
    }


def _loss(cases: Sequence[Case], way: str) -> dict[str, Figure]:
    """Alignment that the same requests lose against the full computation, in percentage points."""
    both = _verdicts(cases, way)
    if not both:
        return {}
    return {
        f"alignment_loss_{name}": results.mean(
            [100.0 * (full.right[name] - this.right[name]) for full, this in both], "percentage points"
        )
        for name in ATTRIBUTES
    }


def _verdicts(cases: Sequence[Case], way: str) -> list[tuple[Verdict, Verdict]]:
    """What the full computation of each request shows, and what this way does."""
    pairs = ((case.ways[FULL].verdict, case.ways[way].verdict) for case in cases)
    return [(full, this) for full, this in pairs if full is not None and this is not None]
