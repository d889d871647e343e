"""Requests of four steps: in full, and a hit that reuses one step and computes a region in two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.gpu.shapes import SIGMAS
from services.denoiser.backends.base import Backend, StepInputs
from services.denoiser.network.sampler import euler_step
from services.denoiser.network.text import AmplifiedText
from services.denoiser.network.wan import Grid
from services.denoiser.reuse.region_masks import compare_predictions, compute_edge_weights, refine_region


@dataclass(frozen=True)
class Video:
    """Inputs of the steps of one video.

    Attributes:
        grid: Tokens along time, rows and columns.
        latents: Latents x_0 to x_4 of a donor as tokens, float32 [5, N, C*P].
        cos: Cosines of the rotary position table, float32 [N, head_dim].
        sin: Its sines, float32 [N, head_dim].
        text: Keys and values of the prompt.
        dtype: Type of the network.
    """

    grid: Grid
    latents: Tensor
    cos: Tensor
    sin: Tensor
    text: AmplifiedText
    dtype: torch.dtype

    def inputs(self, x: Tensor, sigma: float, at: Tensor | None = None) -> StepInputs:
        """Returns the inputs of a step for the tokens `at` of x [N, C*P]; None for all tokens."""
        cos, sin = self.cos, self.sin
        if at is not None:
            x, cos, sin = x[at], cos[at], sin[at]
        timestep = torch.tensor([1000.0 * sigma], device=x.device)
        return StepInputs(x[None].to(self.dtype), cos, sin, self.text, timestep)


def run_full(backend: Backend, video: Video) -> Tensor:
    """Runs four full steps."""
    x = video.latents[0]
    for i in range(4):
        x = _full_step(backend, video, x, i)
    return x


def run_hit(backend: Backend, video: Video, at: Tensor) -> Tensor:
    """Runs two steps of the tokens `at` from the donor's x_1, as `reuse/stages.py` does, and a full step.

    The region does not change, so that its share of the tokens stays fixed, but the computation that refines
    it for the second step is included. The region is known before the first step, as with regions found by
    attention.
    """
    x = video.latents[1]
    active = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    active[at] = True
    for i in (1, 2):
        current, next_, sigma, next_sigma = video.latents[i], video.latents[i + 1], SIGMAS[i], SIGMAS[i + 1]
        velocity = backend.predict(video.inputs(x, sigma, at))[0].float()
        if i == 1:
            donor = current - sigma * (next_ - current) / (next_sigma - sigma)
            differences = compare_predictions(x[at] - sigma * velocity, donor[at], donor.var())
            refine_region(active, differences, video.grid, threshold=0.1, dilation=1)
        own = euler_step(x, torch.zeros_like(x).index_copy_(0, at, velocity), sigma, next_sigma)
        x = torch.lerp(next_, own, compute_edge_weights(active, video.grid)[:, None])
    return _full_step(backend, video, x, 3)


def _full_step(backend: Backend, video: Video, x: Tensor, i: int) -> Tensor:
    velocity = backend.predict(video.inputs(x, SIGMAS[i]))[0].float()
    return euler_step(x, velocity, SIGMAS[i], SIGMAS[i + 1])
