"""Computes figures from measurements.

Names are `<method>[.<kind of edit>].<figure>`, such as `balanced.colour.psnr_db`. The quality of reuse is
computed over hits only, because a miss is the full computation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from evaluation import results
from evaluation.comparisons import comparison_figures
from evaluation.measure import GroupResult, Measurement, TargetResult
from evaluation.methods import FULL, SEED_CHOICES
from evaluation.prompts import OPENING
from evaluation.quality_figures import diversity_figures, quality_figures, render_figures
from evaluation.results import Figure
from evaluation.scenes import SINGLE_EDITS, UNRELATED, Verdict
from models.shapes.yardstick.comparison import FIELDS

MISS: Final = "miss"
ATTRIBUTES: Final = (*FIELDS, "all")


def build_figures(group_results: Sequence[GroupResult], reusing: Sequence[str]) -> dict[str, Figure]:
    """Computes every figure that has at least one measurement, over all kinds of edits and for each kind.

    Args:
        reusing: Names of the methods that search the cache.
    """
    targets = [target for result in group_results for target in result.targets]
    methods = list_methods(targets)
    rivals = [method for method in methods if method not in reusing and method != FULL]
    figures = _misses(group_results, reusing) | render_figures(targets)
    figures |= diversity_figures([spread for result in group_results for spread in result.spreads])
    figures |= comparison_figures(targets, reusing, rivals)
    by_prefix = {"": targets, **{f"{kind}.": filter_kind(targets, kind) for kind in list_kinds(targets)}}
    if opening := [target for target in targets if target.opens and target.kind in SINGLE_EDITS]:
        by_prefix[f"{OPENING}."] = opening
    for prefix, subset in by_prefix.items():
        for method in methods:
            of_method = _reuse_figures(subset, method) if method in reusing else _figures(subset, method)
            figures |= {f"{method}.{prefix}{key}": figure for key, figure in of_method.items()}
    for method in reusing:
        of_method = _single_edits(targets, method) | _false_reuse(targets, method)
        figures |= {f"{method}.{key}": figure for key, figure in of_method.items()}
    edits = [target for target in targets if target.kind in SINGLE_EDITS]
    for name, chosen in _split_by_seed(edits).items():
        for method in reusing:
            of_method = _single_edits(chosen, method)
            of_method["whole_set_speedup"] = _total_speedup(chosen, method)
            figures |= {f"{method}.{name}.{key}": figure for key, figure in of_method.items()}
    for method in rivals if edits else ():
        figures |= {f"{method}.{key}": figure for key, figure in _single_edit_quality(edits, method).items()}
    return figures


def _split_by_seed(targets: Sequence[TargetResult]) -> dict[str, list[TargetResult]]:
    """Splits targets by the seed that their requests stated; empty if all made the same choice.

    `seed_kept` contains those whose results approximate the full computation with the donor's seed.
    """
    choices = {target.seed_choice for target in targets}
    if len(choices) < 2:
        return {}
    found = {f"seed_{c}": [t for t in targets if t.seed_choice == c] for c in SEED_CHOICES if c in choices}
    found["seed_kept"] = [target for target in targets if target.seed_choice != "other"]
    return {name: chosen for name, chosen in found.items() if chosen}


def list_kinds(targets: Iterable[TargetResult]) -> list[str]:
    """Returns the kinds of edits in order of first appearance."""
    return list(dict.fromkeys(target.kind for target in targets))


def filter_kind(targets: Iterable[TargetResult], kind: str) -> list[TargetResult]:
    """Returns the targets of one kind of edit."""
    return [target for target in targets if target.kind == kind]


def list_methods(targets: Iterable[TargetResult]) -> list[str]:
    """Returns the names of the methods in order of first appearance."""
    return list(dict.fromkeys(method for target in targets for method in target.measurements))


def _misses(group_results: Sequence[GroupResult], reusing: Sequence[str]) -> dict[str, Figure]:
    """Computes the duration of misses: of donors, and of targets that found no donor in the cache."""
    seconds = [result.miss_seconds for result in group_results if result.miss_seconds is not None]
    for target in (target for result in group_results for target in result.targets):
        searched = [target.measurements[method] for method in reusing]
        seconds += [m.seconds for m in searched if m.source == "none"]
    return {f"{MISS}.seconds_p50": results.median(seconds, "s")} if seconds else {}


def _reuse_figures(targets: Sequence[TargetResult], method: str) -> dict[str, Figure]:
    """Computes the figures of a method with reuse, over requests that found their own donor or no donor."""
    known, hits = _with_own_donor(targets, method), _hits(targets, method)
    if not known:
        return {}
    return {
        "hit_share": results.share(len(hits), len(known)),
        "whole_set_speedup": _total_speedup(known, method),
        **(_figures(hits, method) if hits else {}),
    }


def _with_own_donor(targets: Sequence[TargetResult], method: str) -> list[TargetResult]:
    """Returns the requests that found their own donor or no donor."""
    return [target for target in targets if target.measurements[method].source != "other"]


def _hits(targets: Sequence[TargetResult], method: str) -> list[TargetResult]:
    return [target for target in targets if target.measurements[method].source == "donor"]


def _single_edits(targets: Sequence[TargetResult], method: str) -> dict[str, Figure]:
    """Computes the figures over single edits: hits against the full computation of the same requests."""
    edits = [target for target in targets if target.kind in SINGLE_EDITS]
    known, hits = _with_own_donor(edits, method), _hits(edits, method)
    if not known:
        return {}
    figures = {"single_edit_hit_share": results.share(len(hits), len(known))}
    if not hits:
        return figures
    return figures | _single_edit_quality(hits, method)


def _single_edit_quality(edits: Sequence[TargetResult], method: str) -> dict[str, Figure]:
    """Compares single edits with the full computation of the same requests. Requires at least one."""
    overheads = [1000 * target.measurements[method].overhead_seconds for target in edits]
    figures = {
        "single_edit_speedup_p50": _median_speedup(edits, method),
        "single_edit_overhead_ms_p50": results.median(overheads, "ms"),
    }
    both = _verdicts(edits, method)
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
    pairs = [(target.measurements[FULL].quality, target.measurements[method].quality) for target in edits]
    shares = [(full.artefact_share, this.artefact_share) for full, this in pairs if full and this]
    if any(full for full, _ in shares):
        figures["single_edit_artefact_ratio"] = results.ratio([t for _, t in shares], [f for f, _ in shares])
    layouts = [(full.layout["all"], this.layout["all"]) for full, this in pairs if full and this]
    if layouts:
        for name, kept in zip(("full_layout_kept", "layout_kept"), zip(*layouts, strict=True), strict=True):
            figures[f"single_edit_{name}"] = results.share(sum(kept), len(layouts))
    return figures


def _false_reuse(targets: Sequence[TargetResult], method: str) -> dict[str, Figure]:
    """Computes the share of requests that reused a donor they have nothing in common with."""
    unrelated = _with_own_donor(filter_kind(targets, UNRELATED), method)
    if not unrelated:
        return {}
    return {"false_reuse_rate": results.share(len(_hits(unrelated, method)), len(unrelated))}


def _figures(targets: Sequence[TargetResult], method: str) -> dict[str, Figure]:
    """Computes the figures of a method over at least one target."""
    measurements = [target.measurements[method] for target in targets]
    figures = {
        "seconds_p50": results.median([m.seconds for m in measurements], "s"),
        "steps_run": results.mean([m.steps_run for m in measurements], "steps"),
        **_alignment(measurements),
        **_drift(measurements),
        **quality_figures(targets, method),
    }
    if method == FULL:
        return figures
    saved = [
        target.measurements[FULL].steps_run - target.measurements[method].steps_run for target in targets
    ]
    figures["speedup_p50"] = _median_speedup(targets, method)
    figures["steps_saved"] = results.mean(saved, "steps")
    likeness_metrics: dict[str, tuple[str, Callable[[Measurement], float | None]]] = {
        "psnr_db": ("dB", lambda m: m.psnr),
        "ssim": ("1", lambda m: m.ssim),
        "seam": ("levels of 255", lambda m: m.seam),
    }
    for name, (unit, value) in likeness_metrics.items():
        values = [likeness for m in measurements if (likeness := value(m)) is not None]
        if values:
            figures[name] = results.mean(values, unit)
    return figures | _loss(targets, method)


def _median_speedup(targets: Sequence[TargetResult], method: str) -> Figure:
    """Computes the median, over requests, of the full computation's seconds divided by the method's."""
    pairs = [(target.measurements[FULL], target.measurements[method]) for target in targets]
    return results.median([full.seconds / this.seconds for full, this in pairs], "x")


def _total_speedup(targets: Sequence[TargetResult], method: str) -> Figure:
    """Computes the full computation's total seconds divided by the method's, over all requests."""
    full = [target.measurements[FULL].seconds for target in targets]
    return results.ratio(full, [target.measurements[method].seconds for target in targets])


def _alignment(measurements: Sequence[Measurement]) -> dict[str, Figure]:
    """Computes, for each attribute, the share of videos that show what their prompt requests."""
    verdicts = [m.verdict.right for m in measurements if m.verdict is not None]
    if not verdicts:
        return {}
    return {
        f"alignment_{name}": results.share(sum(right[name] for right in verdicts), len(verdicts))
        for name in ATTRIBUTES
    }


def _drift(measurements: Sequence[Measurement]) -> dict[str, Figure]:
    """Computes for each attribute the share of videos that follow the donor's prompt where the two differ."""
    followed = [m.verdict.followed for m in measurements if m.verdict is not None and m.verdict.followed]
    shares = {name: [attributes[name] for attributes in followed if name in attributes] for name in FIELDS}
    shares["any"] = [any(attributes.values()) for attributes in followed]
    return {
        f"donor_drift_{name}": results.share(sum(values), len(values))
        for name, values in shares.items()
        if values
    }


def _loss(targets: Sequence[TargetResult], method: str) -> dict[str, Figure]:
    """Computes the alignment lost against the full computation of the same requests, in percentage points."""
    both = _verdicts(targets, method)
    if not both:
        return {}
    return {
        f"alignment_loss_{name}": results.mean(
            [100.0 * (full.right[name] - this.right[name]) for full, this in both], "percentage points"
        )
        for name in ATTRIBUTES
    }


def _verdicts(targets: Sequence[TargetResult], method: str) -> list[tuple[Verdict, Verdict]]:
    """Returns, for each request, the verdicts on the full computation and on the method's video."""
    pairs = ((target.measurements[FULL].verdict, target.measurements[method].verdict) for target in targets)
    return [(full, this) for full, this in pairs if full is not None and this is not None]
