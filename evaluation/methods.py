"""The ways to generate a target: in full, by a policy, by a plan, as others would, in fewer steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from chorus_client import ExplicitReuse, SpecOptions, explicit_reuse

from evaluation.baselines import BASELINES, Baseline, baseline_plan

FULL: Final = "full"


@dataclass(frozen=True)
class Method:
    """A way to generate a target.

    Attributes:
        options: what it asks for besides prompt and seed.
        by_score: what it asks for besides, from the donor's score and the number of steps; None where that
            depends on neither.
    """

    name: str
    options: SpecOptions
    by_score: Callable[[float, int], SpecOptions] | None = None

    @property
    def reuses(self) -> bool:
        """Whether it looks into the cache."""
        return self.options.get("reuse") != "off"


IN_FULL: Final = Method(FULL, {"reuse": "off"})
# Asks for the score of the most similar donor; what it shows is nobody's.
PROBE: Final = Method("probe", {"explicit_reuse": explicit_reuse(1, min_score=-1)})


def ways_of(
    policies: Sequence[str],
    plans: Mapping[str, ExplicitReuse],
    baselines: Sequence[str],
    fewer: Sequence[int],
) -> list[Method]:
    """The ways besides the full one; baselines come after those whose hits tell the score."""
    return [
        *(Method(policy, {"reuse": policy}) for policy in policies),
        *(Method(name, {"explicit_reuse": plan}) for name, plan in plans.items()),
        *(Method(name, {}, partial(_baseline, BASELINES[name])) for name in baselines),
        *(Method(f"steps_{steps}", {"reuse": "off", "steps": steps}) for steps in fewer),
    ]


def _baseline(baseline: Baseline, score: float, total_steps: int) -> SpecOptions:
    plan = baseline_plan(baseline, score, total_steps)
    return {"reuse": "off"} if plan is None else {"explicit_reuse": plan}
