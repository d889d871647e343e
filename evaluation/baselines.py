"""Reuse rules of other systems as explicit plans: steps to skip, chosen from the donor's score only.

The tables were published for CLIP's cosine. Here they are applied to the deployment's own score between
prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from chorus_client import ExplicitReuse, explicit_reuse


@dataclass(frozen=True)
class Baseline:
    """Reuse rule of another system.

    Attributes:
        rows: Lowest score of each row, in descending order, and the share of steps skipped from that score
            on.
        renoised: True to start from the donor's clean latents, noised again, instead of its latents at that
            step.
    """

    rows: tuple[tuple[float, Fraction], ...]
    renoised: bool = False


def _above(cosine: float) -> float:
    return math.nextafter(cosine, 1.0)


# vLLM-Omni's pull request 4937: one threshold, at most half of the steps.
_HALF: Final = ((0.75, Fraction(1, 2)),)

BASELINES: Final[Mapping[str, Baseline]] = {
    # Agarwal et al., NSDI 2024: the numerators are steps skipped of 50.
    "nirvana": Baseline(
        (
            (_above(0.95), Fraction(25, 50)),
            (_above(0.90), Fraction(20, 50)),
            (_above(0.85), Fraction(15, 50)),
            (_above(0.75), Fraction(10, 50)),
            (_above(0.65), Fraction(5, 50)),
        )
    ),
    "threshold": Baseline(_HALF),
    # Xia et al., MoDM, arXiv 2503.11972, for images. Its bounds are on CLIP's cosine between a prompt and a
    # finished image, which is another scale than the cosine between two prompts. Depth and bound are
    # therefore taken from `threshold`, so that the two baselines differ only in the latents that they start
    # from.
    "modm": Baseline(_HALF, renoised=True),
}


def baseline_plan(baseline: Baseline, score: float, total_steps: int) -> ExplicitReuse | None:
    """Returns the plan that a baseline requests: the steps of the matching row, rounded down, and its bound.

    A score below every row returns the lowest row's plan. The donor then misses its bound, so that the
    request searches the cache, finds nothing and is computed in full, exactly as that baseline would do.
    Returns None if no row skips at least one of `total_steps`.
    """
    rows = [(min_score, int(share * total_steps)) for min_score, share in baseline.rows]
    rows = [(min_score, skipped) for min_score, skipped in rows if skipped]
    if not rows:
        return None
    min_score, skipped = next((row for row in rows if score >= row[0]), rows[-1])
    return explicit_reuse(skipped, min_score=min_score, renoised=baseline.renoised)
