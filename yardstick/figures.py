"""From measurements to figures. Names are `<way>[.<kind of edit>].<figure>`: `balanced.colour.psnr_db`.

What reuse does to quality is told over hits alone, because a miss is the full computation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from models.movingshapes.analyzer import FIELDS
from yardstick import results
from yardstick.measure import FULL, Case, Outcome, Served
from yardstick.results import Figure

MISS: Final = "miss"
ATTRIBUTES: Final = (*FIELDS, "all")


def figures_of(outcomes: Sequence[Outcome], policies: Sequence[str]) -> dict[str, Figure]:
    """Every figure that has a measurement behind it, for all kinds together and for each.

    Args:
        policies: the ways that look into the cache.
    """
    cases = [case for outcome in outcomes for case in outcome.cases]
    figures = _misses(outcomes, policies)
    for name, some in {"": cases, **{f"{kind}.": of_kind(cases, kind) for kind in kinds_of(cases)}}.items():
        for way in ways_of(cases):
            found = _reused(some, way) if way in policies else _computed(some, way)
            figures |= {f"{way}.{name}{key}": figure for key, figure in found.items()}
    return figures


def kinds_of(cases: Iterable[Case]) -> list[str]:
    """The kinds of edits, in the order in which they come."""
    return list(dict.fromkeys(case.kind for case in cases))


def of_kind(cases: Iterable[Case], kind: str) -> list[Case]:
    return [case for case in cases if case.kind == kind]


def ways_of(cases: Iterable[Case]) -> list[str]:
    return list(dict.fromkeys(way for case in cases for way in case.ways))


def _misses(outcomes: Sequence[Outcome], policies: Sequence[str]) -> dict[str, Figure]:
    seconds = [o.miss_seconds for o in outcomes if o.miss_seconds is not None]
    for case in (case for outcome in outcomes for case in outcome.cases):
        seconds += [case.ways[p].seconds for p in policies if case.ways[p].source == "none"]
    return {f"{MISS}.seconds_p50": results.median(seconds, "s")} if seconds else {}


def _reused(cases: Sequence[Case], policy: str) -> dict[str, Figure]:
    """A policy's figures: over the requests that found their own donor, or none."""
    known = [case for case in cases if case.ways[policy].source != "other"]
    hits = [case for case in known if case.ways[policy].source == "donor"]
    if not known:
        return {}
    return {
        "hit_share": results.share(len(hits), len(known)),
        "whole_set_speedup": _speedup(known, policy),
        **(_computed(hits, policy) if hits else {}),
    }


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
    ratios = [case.ways[FULL].seconds / case.ways[way].seconds for case in cases]
    saved = [case.ways[FULL].steps_run - case.ways[way].steps_run for case in cases]
    figures["speedup_p50"] = results.median(ratios, "x")
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
    pairs = [(case.ways[FULL].verdict, case.ways[way].verdict) for case in cases]
    both = [(full.right, this.right) for full, this in pairs if full is not None and this is not None]
    if not both:
        return {}
    return {
        f"alignment_loss_{name}": results.mean(
            [100.0 * (full[name] - this[name]) for full, this in both], "percentage points"
        )
        for name in ATTRIBUTES
    }
