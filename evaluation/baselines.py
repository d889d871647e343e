"""How others reuse, as explicit plans: how deep, from a donor's score alone, and from which of its latents.

The tables were published for CLIP's cosine. Here they read the deployment's own score, between prompts.
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
    """A system's way to reuse.

    Attributes:
        rows: the lowest score of each row, best first, and the share of the steps that is then skipped.
        renoised: begins with the donor's clean latents, noised again, instead of its latents of that step.
    """

    rows: tuple[tuple[float, Fraction], ...]
    renoised: bool = False


def _above(cosine: float) -> float:
    return math.nextafter(cosine, 1.0)


# vLLM-Omni's pull request 4937: one threshold, at most half of the steps.
_HALF: Final = ((0.75, Fraction(1, 2)),)

BASELINES: Final[Mapping[str, Baseline]] = {
    # Agarwal et al., NSDI 2024: so many of 50 steps.
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
    # Xia et al., MoDM, arXiv 2503.11972, for images. Its bounds are of CLIP's cosine between a prompt and a
    # finished image, a scale on which those between prompts do not lie: the depth and the bound are
    # `threshold`'s, so that the two differ in the latents alone.
    "modm": Baseline(_HALF, renoised=True),
}


def baseline_plan(baseline: Baseline, score: float, total_steps: int) -> ExplicitReuse | None:
    """What a baseline asks for: as many steps as its row skips, rounded down, from such a donor or a better.

    A score that no row reuses asks for the lowest row, whose bound the donor then misses: so the request
    looks, finds nothing and is computed in full, as it would be by that baseline. None where no row skips a
    whole step of so few.
    """
    rows = [(lowest, int(share * total_steps)) for lowest, share in baseline.rows]
    rows = [(lowest, skipped) for lowest, skipped in rows if skipped]
    if not rows:
        return None
    lowest, skipped = next((row for row in rows if score >= row[0]), rows[-1])
    return explicit_reuse(skipped, min_score=lowest, renoised=baseline.renoised)
