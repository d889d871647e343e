"""The three stages of a plan: reuse, the region, and full computation at the end.

Stage 1 is where the run begins: at the donor's x_{K1}, or, renoised, at its clean latents with the target's
own noise over them. In stage 2, steps K1 to K2 − 1, the network runs on the active tokens alone; the others
take the donor's next latents. Stage 3 computes every token. In full computation, K1 = K2 = 0, this is the
plain sampler's loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from chorus.common.v1 import plan_pb2
from torch import Tensor

from services.denoiser.model.loaded import LatentShape, LoadedModel
from services.denoiser.network.sampler import euler, noised
from services.denoiser.network.text import AmplifiedText
from services.denoiser.network.wan import AttentionObserver, TextKV
from services.denoiser.reuse.amplification import amplified, applies
from services.denoiser.reuse.regions import (
    active_region,
    attended_region,
    difference,
    edge_weights,
    probe_tokens,
    refined,
    strided_context,
)


@dataclass(frozen=True)
class DonorLatents:
    """What a run takes from its donor, on the model's device.

    Args:
        steps: by index, float32 [C, T, H, W]: x_{K1} … x_{K2}, or x_N alone for a renoised plan.
        maps: [L, N] in 0..1, where each token of its prompt acted; for regions by attention.
        text: its prompt, encoded; for contrast.
    """

    steps: Mapping[int, Tensor]
    maps: Tensor | None = None
    text: TextKV | None = None


@dataclass(frozen=True)
class StageStep:
    """One finished step.

    Args:
        latents: x_{index+1}.
        computed_share: tokens that went through the network, by all tokens.
        active: bool [N], the tokens that are the target's own; None is all.
    """

    index: int
    latents: Tensor
    computed_share: float
    active: Tensor | None


class Stages:
    """Runs one plan. Iterate over `steps` once; the caller stops by not asking for the next one.

    Args:
        plan: valid for the schedule, and whatever it asks of the donor is there.
        latents: x_0, the target's own noise: where a run without a donor begins, and a renoised one's noise.
    """

    def __init__(
        self,
        model: LoadedModel,
        plan: plan_pb2.Plan,
        shape: LatentShape,
        sigmas: tuple[float, ...],
        text: TextKV,
        latents: Tensor,
        donor: DonorLatents | None,
    ) -> None:
        self._model, self._plan, self._shape, self._sigmas, self._text = model, plan, shape, sigmas, text
        self._donor = donor
        self._first = plan.reuse_steps if donor else 0
        self._region_end = max(self._first, plan.region_end) if donor else 0
        self._grid = model.token_grid(shape)
        # Of the donor, made once: x_i as tokens, and what its step i predicted.
        self._donor_steps: dict[int, Tensor] = {}
        self._predictions: dict[int, tuple[Tensor, Tensor]] = {}
        self._tokens = self._start(latents)
        # Of the next step; None is every token: before the region is known, and where it is too large.
        self._active: Tensor | None = None

    def steps(self, on_attention: Mapping[int, AttentionObserver] | None = None) -> Iterator[StageStep]:
        """Steps K1 to N - 1.

        Args:
            on_attention: by step, what is told of cross-attention if that step computes every token.
        """
        for index in range(self._first, len(self._sigmas) - 1):
            share = 0.0
            if index == self._first < self._region_end:
                share, velocity = self._search(index)
            else:
                velocity = None
            if index >= self._region_end:
                self._active = None
            active = self._active
            if velocity is not None:
                self._take(index, velocity)
            elif active is not None:
                share += self._region_step(index, active)
            else:
                velocity = self._velocity(index, None, (on_attention or {}).get(index))
                self._tokens = self._next(index, velocity)
                share += 1.0
            yield StageStep(index, self._model.latents_of(self._tokens, self._shape), share, active)

    def _start(self, noise: Tensor) -> Tensor:
        """x_{K1}. Renoising is how MoDM reuses images: Xia et al., arXiv 2503.11972."""
        if self._donor is None:
            return self._model.tokens_of(noise)
        if self._plan.renoised:
            clean = self._donor_tokens(len(self._sigmas) - 1)
            return noised(clean, self._model.tokens_of(noise), self._sigmas[self._first])
        return self._donor_tokens(self._first)

    def _next(self, index: int, velocity: Tensor) -> Tensor:
        return euler(self._tokens, velocity, self._sigmas[index], self._sigmas[index + 1])

    def _velocity(
        self, index: int, at: Tensor | None, on_attention: AttentionObserver | None = None
    ) -> Tensor:
        """Velocity of the tokens `at` [n], or of all."""
        plan, text = self._plan, self._text
        read: TextKV | AmplifiedText = text
        if self._donor is not None and applies(plan.amplification, index):
            gained = [(token.index, token.weight) for token in plan.gained]
            read = amplified(text, plan.amplification, gained=gained, donor=self._donor.text)
        return self._model.token_velocity(
            self._tokens, self._sigmas[index], read, self._shape, at, on_attention
        )

    def _search(self, index: int) -> tuple[float, Tensor | None]:
        """Finds the region. Returns the share of tokens that were computed for it, and the step's velocity
        where that is known with it.

        A region larger than its budget is no region: everything is computed.
        """
        region, grid, device = self._plan.region, self._grid, self._tokens.device
        if region.source == plan_pb2.REGION_SOURCE_ATTENTION:
            assert self._donor is not None
            assert self._donor.maps is not None
            lost = [(token.index, token.weight) for token in self._plan.lost]
            found = attended_region(
                self._donor.maps, lost, grid, threshold=region.threshold, dilation=region.dilation
            )
            self._active = self._within_budget(found)
            return 0.0, None
        probed = region.source == plan_pb2.REGION_SOURCE_PROBE
        at = probe_tokens(grid, device) if probed else torch.arange(len(self._tokens), device=device)
        velocity = self._velocity(index, at)
        found = active_region(
            self._differences(index, velocity, at),
            at,
            grid,
            threshold=region.threshold,
            dilation=region.dilation,
            sparse=probed,
        )
        self._active = self._within_budget(found)
        return len(at) / len(self._tokens), None if probed else velocity

    def _within_budget(self, active: Tensor) -> Tensor | None:
        return None if float(active.float().mean()) > self._plan.region.budget else active

    def _differences(self, index: int, velocity: Tensor, at: Tensor) -> Tensor:
        """How far the predictions of clean data of the tokens `at` are from the donor's own, [n].

        The donor's prediction follows from its latents before and after the step.
        """
        donor, variance = self._donor_prediction(index)
        return difference(self._tokens[at] - self._sigmas[index] * velocity, donor[at], variance)

    def _donor_prediction(self, index: int) -> tuple[Tensor, Tensor]:
        """The clean data that the donor's step predicted, [N, C*P], and its variance."""
        if index not in self._predictions:
            here, there, sigma = self._donor_tokens(index), self._donor_tokens(index + 1), self._sigmas[index]
            prediction = here - sigma * (there - here) / (self._sigmas[index + 1] - sigma)
            self._predictions[index] = prediction, prediction.var()
        return self._predictions[index]

    def _region_step(self, index: int, active: Tensor) -> float:
        """Computes the active tokens; returns the share of tokens that went through the network."""
        region = self._plan.region
        at = active.nonzero()[:, 0]
        if not len(at):
            self._tokens = self._donor_tokens(index + 1)
            return 0.0
        seen = at
        if region.context == plan_pb2.REGION_CONTEXT_STRIDED:
            seen = torch.cat((at, strided_context(active, self._grid))).sort().values
        velocity = self._velocity(index, seen)[active[seen]]
        differences = self._differences(index, velocity, at)
        self._take(index, torch.zeros_like(self._tokens).index_copy_(0, at, velocity))
        if region.source != plan_pb2.REGION_SOURCE_ATTENTION:  # whose threshold is of another kind
            self._active = refined(
                active, differences, self._grid, threshold=region.threshold, dilation=region.dilation
            )
        return len(seen) / len(active)

    def _take(self, index: int, velocity: Tensor) -> None:
        """x_{index+1}: the target's own where it is active, less so at the region's edge, else the donor's.

        Args:
            velocity: [N, C*P]; what it holds for tokens that are not active does not count.
        """
        own = self._next(index, velocity)
        if self._active is None:
            self._tokens = own
            return
        weight = edge_weights(self._active, self._grid)[:, None]
        self._tokens = torch.lerp(self._donor_tokens(index + 1), own, weight)

    def _donor_tokens(self, index: int) -> Tensor:
        assert self._donor is not None
        if index not in self._donor_steps:
            self._donor_steps[index] = self._model.tokens_of(self._donor.steps[index])
        return self._donor_steps[index]
