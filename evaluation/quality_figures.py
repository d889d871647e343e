"""Figures of artefacts, sharpness, layout, distance and diversity, computed from measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from evaluation import results
from evaluation.distances import MIN_VIDEOS, distance, distance_difference
from evaluation.measure import Spread, TargetResult
from evaluation.methods import FULL
from evaluation.quality import Quality
from evaluation.results import Figure
from evaluation.scenes import UNRELATED
from models.shapes.yardstick.diversity import DIVERSITY_FIELDS, diversity_ratios
from models.shapes.yardstick.kept import KEPT_FIELDS

RENDERS: Final = "renders"  # prefix of the figures of rendered videos, in place of a method
_RESAMPLES: Final = 1000
_MEANS: Final[dict[str, tuple[str, Callable[[Quality], float | None]]]] = {
    "artefact_share": ("share of pixels", lambda q: q.artefact_share),
    "residue": ("of the full range", lambda q: q.residue),
    "donor_share_of_residue": ("of the residue", lambda q: q.donor_share),
    "sharpness": ("of renders", lambda q: q.rims),
    "texture_sharpness": ("of renders", lambda q: q.texture),
}


def quality_figures(targets: Sequence[TargetResult], method: str) -> dict[str, Figure]:
    """Computes the figures of a method over targets; those without measurements are omitted.

    Unrelated prompts have no layout in common, so the figures of the layout leave them out.
    """
    measured = [(t, q) for t in targets if (q := t.measurements[method].quality) is not None]
    if not measured:
        return {}
    qualities = [quality for _, quality in measured]
    figures = {"artefact_rate": results.share(sum(q.artefact for q in qualities), len(qualities))}
    for name, (unit, value) in _MEANS.items():
        values = [v for q in qualities if (v := value(q)) is not None]
        if values:
            figures[name] = results.mean(values, unit)
    layouts = [quality.layout for target, quality in measured if target.kind != UNRELATED]
    if layouts:
        for part in (*KEPT_FIELDS, "all"):
            kept = sum(layout[part] for layout in layouts)
            figures[f"layout_kept_{part}"] = results.share(kept, len(layouts))
    return figures | _distances([target for target, _ in measured], method)


def _distances(targets: Sequence[TargetResult], method: str) -> dict[str, Figure]:
    """Computes the distance to renders of the same requests, and by how much it exceeds that of the full
    computation of these requests."""
    with_both = [t for t in targets if t.renders and t.measurements[FULL].quality is not None]
    if len(with_both) < MIN_VIDEOS:
        return {}
    renders = [target.renders[0] for target in with_both]
    own = collect_features(with_both, method)
    figures = {"distance": distance(own, renders)}
    if method != FULL:
        full = collect_features(with_both, FULL)
        figures["distance_excess"] = distance_difference(own, full, renders)
    return figures


def collect_features(targets: Sequence[TargetResult], method: str) -> list[tuple[float, ...]]:
    """Returns the features of a method's videos. Requires that every target has them."""
    features = []
    for target in targets:
        quality = target.measurements[method].quality
        assert quality is not None
        features.append(quality.features)
    return features


def render_figures(targets: Sequence[TargetResult]) -> dict[str, Figure]:
    """Computes the distance between two sets of renders, the lowest that a method can have at this n."""
    rendered = [target.renders for target in targets if target.renders]
    if len(rendered) < MIN_VIDEOS:
        return {}
    return {f"{RENDERS}.distance": distance([second for _, second in rendered], [r[0] for r in rendered])}


def diversity_figures(spreads: Sequence[Spread]) -> dict[str, Figure]:
    """Computes for each method its spread over seeds, divided by that of renders of the same scenes."""
    figures = {}
    for method in dict.fromkeys(name for spread in spreads for name in spread.methods):
        pairs = [(s.methods[method], s.rendered) for s in spreads if method in s.methods]
        rows = [(_with_nan(shown), _with_nan(rendered)) for shown, rendered in pairs]
        value = _ratios(rows)
        rng = np.random.default_rng(0)
        draws = [
            _ratios([rows[i] for i in rng.integers(len(rows), size=len(rows))])
            for _ in range(_RESAMPLES if len(rows) > 1 else 0)
        ]
        for field in (*DIVERSITY_FIELDS, "mean"):
            if math.isnan(value[field]):
                continue
            bounds = None
            if drawn := [draw[field] for draw in draws if not math.isnan(draw[field])]:
                low, high = np.percentile(drawn, (2.5, 97.5))
                bounds = (float(low), float(high))
            figures[f"{method}.diversity_{field}"] = Figure(value[field], "of renders", len(rows), bounds)
    return figures


def _ratios(rows: Sequence[tuple[dict[str, float], dict[str, float]]]) -> dict[str, float]:
    return diversity_ratios([shown for shown, _ in rows], [rendered for _, rendered in rows])


def _with_nan(variances: dict[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in variances.items()}
