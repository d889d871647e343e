"""Region finders of stage 2: one strategy for each source that a plan can name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from chorus.common.v1 import plan_pb2
from torch import Tensor

from services.denoiser.reuse.donor import DonorTrajectory
from services.denoiser.reuse.region_masks import (
    find_attended_region,
    find_differing_region,
    refine_region,
    select_probe_tokens,
)
from services.denoiser.reuse.target import Target


class RegionFinder(ABC):
    """Chooses the active tokens: those that stage 2 computes."""

    @abstractmethod
    def find(self, step: int, tokens: Tensor, target: Target, donor: DonorTrajectory) -> Tensor:
        """Returns the active tokens before the first step of stage 2, bool [N].

        Args:
            step: K1.
            tokens: x_{K1}, [N, C*P].
        """

    def refine(self, active: Tensor, differences: Callable[[], Tensor], target: Target) -> Tensor:
        """Returns the active tokens of the next region step, bool [N]: those of the last one or part of them.

        Args:
            differences: Computes the differences [n] of the active tokens, in order, as
                `DonorTrajectory.differences` defines them.
        """
        return active


class _DifferenceFinder(RegionFinder):
    """Base of finders that compare the target's predictions with the donor's."""

    def __init__(self, region: plan_pb2.RegionPlan) -> None:
        self._threshold, self._dilation = region.threshold, region.dilation

    def refine(self, active: Tensor, differences: Callable[[], Tensor], target: Target) -> Tensor:
        return refine_region(
            active, differences(), target.grid, threshold=self._threshold, dilation=self._dilation
        )


class ProbeFinder(_DifferenceFinder):
    """Computes every fourth token, and activates the tokens around those that differ from the donor's."""

    def find(self, step: int, tokens: Tensor, target: Target, donor: DonorTrajectory) -> Tensor:
        probes = select_probe_tokens(target.grid, tokens.device)
        differences = donor.differences(step, tokens, target.velocity(step, tokens, probes), probes)
        return find_differing_region(
            differences,
            target.grid,
            threshold=self._threshold,
            dilation=self._dilation,
            probes=probes,
        )


class FullStepFinder(_DifferenceFinder):
    """Computes the first step of stage 2 in full, and activates the tokens that differ from the donor's."""

    def find(self, step: int, tokens: Tensor, target: Target, donor: DonorTrajectory) -> Tensor:
        differences = donor.differences(step, tokens, target.velocity(step, tokens))
        return find_differing_region(
            differences, target.grid, threshold=self._threshold, dilation=self._dilation
        )


class AttentionFinder(RegionFinder):
    """Activates the tokens where lost words acted in the donor. Computes nothing.

    The region stays as it is: its threshold is a share of attention, which later steps do not measure.
    """

    def __init__(self, plan: plan_pb2.Plan) -> None:
        self._region = plan.region
        self._lost = [(token.index, token.weight) for token in plan.lost]

    def find(self, step: int, tokens: Tensor, target: Target, donor: DonorTrajectory) -> Tensor:
        return find_attended_region(
            donor.maps,
            self._lost,
            target.grid,
            threshold=self._region.threshold,
            dilation=self._region.dilation,
        )


def create_region_finder(plan: plan_pb2.Plan) -> RegionFinder:
    """Returns the finder for the source that the plan names. Raises ValueError if it names none."""
    if plan.region.source == plan_pb2.REGION_SOURCE_ATTENTION:
        return AttentionFinder(plan)
    if plan.region.source == plan_pb2.REGION_SOURCE_PROBE:
        return ProbeFinder(plan.region)
    if plan.region.source == plan_pb2.REGION_SOURCE_FULL_STEP:
        return FullStepFinder(plan.region)
    raise ValueError(f"unknown region source {plan.region.source}")
