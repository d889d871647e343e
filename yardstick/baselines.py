"""How others choose the depth of reuse, as explicit plans: from a donor's score alone, one threshold or more.

Both were published for CLIP's cosine between prompts. Here they read the deployment's own score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Final, TypeAlias

from chorus_client import ExplicitReuse, explicit_reuse

# The lowest score of each row, best first, and the share of the steps that is then skipped.
Table: TypeAlias = tuple[tuple[float, Fraction], ...]


def _above(cosine: float) -> float:
    return math.nextafter(cosine, 1.0)


BASELINES: Final[Mapping[str, Table]] = {
    # Agarwal et al., NSDI 2024: so many of 50 steps.
    "nirvana": (
        (_above(0.95), Fraction(25, 50)),
        (_above(0.90), Fraction(20, 50)),
        (_above(0.85), Fraction(15, 50)),
        (_above(0.75), Fraction(10, 50)),
        (_above(0.65), Fraction(5, 50)),
    ),
    # vLLM-Omni's pull request 4937: one threshold, at most half of the steps.
    "threshold": ((0.75, Fraction(1, 2)),),
}


def baseline_plan(table: Table, score: float, total_steps: int) -> ExplicitReuse | None:
    """What a baseline asks for: as many steps as its row skips, rounded down, from such a donor or a better.

    A score that no row reuses asks for the lowest row, whose bound the donor then misses: so the request
    looks, finds nothing and is computed in full, as it would be by that baseline. None where no row skips a
    whole step of so few.
    """
    rows = [(lowest, int(share * total_steps)) for lowest, share in table]
    rows = [(lowest, skipped) for lowest, skipped in rows if skipped]
    if not rows:
        return None
    lowest, skipped = next((row for row in rows if score >= row[0]), rows[-1])
    return explicit_reuse(skipped, min_score=lowest)
