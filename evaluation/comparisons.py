"""Paired comparison of methods with reuse and their rivals without: the same requests, the same run.

Names are `versus.<reuse>.<rival>[.<kind>].<measure>`; a value above 0 is in favour of reuse. `speedup` is the
rival's seconds divided by those of reuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from evaluation import results
from evaluation.distances import MIN_VIDEOS, distance_difference
from evaluation.measure import Measurement, TargetResult
from evaluation.methods import FULL
from evaluation.quality_figures import collect_features
from evaluation.results import Figure
from evaluation.scenes import SINGLE_EDITS

VERSUS: Final = "versus"
POINTS: Final = "percentage points"
ALIGNMENT, ARTEFACTS, LAYOUT = "alignment_points", "artefact_points", "layout_points"
SHARPNESS, DISTANCE = "sharpness", "distance"
SPEEDUP: Final = "speedup"


_MEASURES: Final[Mapping[str, tuple[str, Callable[[Measurement], float | None]]]] = {
    ALIGNMENT: (POINTS, lambda m: None if m.verdict is None else 100.0 * m.verdict.right["all"]),
    ARTEFACTS: (POINTS, lambda m: None if m.quality is None else -100.0 * m.quality.artefact),
    LAYOUT: (POINTS, lambda m: None if m.quality is None else 100.0 * m.quality.layout["all"]),
    SHARPNESS: ("of renders", lambda m: None if m.quality is None else m.quality.rims),
}


def comparison_figures(
    targets: Sequence[TargetResult], reusing: Sequence[str], rivals: Sequence[str]
) -> dict[str, Figure]:
    """Compares the hits of each method with reuse among single edits with every rival without reuse.

    The full computation is a rival, too. Alignment is compared for each kind of edit as well.
    """
    edits = [target for target in targets if target.kind in SINGLE_EDITS]
    figures: dict[str, Figure] = {}
    for reuse in reusing:
        hits = [target for target in edits if target.measurements[reuse].source == "donor"]
        for rival in (FULL, *rivals):
            prefix = f"{VERSUS}.{reuse}.{rival}"
            figures |= {f"{prefix}.{key}": figure for key, figure in _compare(hits, reuse, rival).items()}
            for kind in dict.fromkeys(target.kind for target in hits):
                of_kind = [target for target in hits if target.kind == kind]
                difference = _difference(of_kind, reuse, rival, ALIGNMENT)
                if difference is not None:
                    figures[f"{prefix}.{kind}.{ALIGNMENT}"] = difference
    return figures


def _compare(hits: Sequence[TargetResult], reuse: str, rival: str) -> dict[str, Figure]:
    if not hits:
        return {}
    pairs = [(target.measurements[reuse], target.measurements[rival]) for target in hits]
    figures = {SPEEDUP: results.median([other.seconds / this.seconds for this, other in pairs], "x")}
    for measure in _MEASURES:
        difference = _difference(hits, reuse, rival, measure)
        if difference is not None:
            figures[measure] = difference
    readable = [t for t in hits if t.renders and all(t.measurements[m].quality for m in (reuse, rival))]
    if len(readable) >= MIN_VIDEOS:
        own, other = (collect_features(readable, method) for method in (reuse, rival))
        # The rival's distance minus that of reuse: nearer to renders is better.
        figures[DISTANCE] = distance_difference(other, own, [target.renders[0] for target in readable])
    return figures


def _difference(hits: Sequence[TargetResult], reuse: str, rival: str, measure: str) -> Figure | None:
    unit, value = _MEASURES[measure]
    pairs = [(value(target.measurements[reuse]), value(target.measurements[rival])) for target in hits]
    differences = [this - other for this, other in pairs if this is not None and other is not None]
    return results.mean(differences, unit) if differences else None
