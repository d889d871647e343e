"""Methods of generating a target: in full, with a policy, a plan or a baseline, or in fewer steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeAlias, get_args

from chorus_client import ExplicitReuse, SpecOptions, explicit_reuse

from evaluation.baselines import BASELINES, Baseline, baseline_plan

FULL: Final = "full"
# Seed that the request of a target states: the donor's, as people who edit a prompt send it; none, so that
# the server may take the donor's; or another one, which asks for a video of its own. The full computation of
# a target without a stated seed has the donor's.
SeedChoice: TypeAlias = Literal["same", "none", "other"]
SEED_CHOICES: Final[tuple[SeedChoice, ...]] = get_args(SeedChoice)
# The choice for all groups of an evaluation; "mixed" gives each of the three to every third group.
TargetSeed: TypeAlias = SeedChoice | Literal["mixed"]
TARGET_SEEDS: Final[tuple[TargetSeed, ...]] = (*SEED_CHOICES, "mixed")


@dataclass(frozen=True)
class Method:
    """A method of generating a target.

    Attributes:
        name: Name of the method in figures and tables.
        options: Request options in addition to prompt and seed.
        by_score: Function from the donor's score and the number of steps to further request options. None if
            the request depends on neither.
    """

    name: str
    options: SpecOptions
    by_score: Callable[[float, int], SpecOptions] | None = None

    @property
    def reuses(self) -> bool:
        """Returns whether the method searches the cache."""
        return self.options.get("reuse") != "off"


FULL_METHOD: Final = Method(FULL, {"reuse": "off"})
# Probes the top donor's score; the video itself is discarded.
PROBE: Final = Method("probe", {"explicit_reuse": explicit_reuse(1, min_score=-1)})


def build_methods(
    policies: Sequence[str],
    plans: Mapping[str, ExplicitReuse],
    baselines: Sequence[str],
    fewer: Sequence[int],
    rivals: Mapping[str, str] | None = None,
) -> list[Method]:
    """Builds all methods except the full computation.

    Args:
        rivals: By name of the method, the id of a model that is measured without reuse.

    Baselines come after policies and plans, because a hit of one of these already reports the score.
    """
    return [
        *(Method(policy, {"reuse": policy}) for policy in policies),
        *(Method(name, {"explicit_reuse": plan}) for name, plan in plans.items()),
        *(Method(name, {}, partial(_baseline, BASELINES[name])) for name in baselines),
        *(Method(f"steps_{steps}", {"reuse": "off", "steps": steps}) for steps in fewer),
        *(Method(name, {"reuse": "off", "model": model}) for name, model in (rivals or {}).items()),
    ]


def _baseline(baseline: Baseline, score: float, total_steps: int) -> SpecOptions:
    plan = baseline_plan(baseline, score, total_steps)
    return {"reuse": "off"} if plan is None else {"explicit_reuse": plan}
