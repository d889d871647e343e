"""The few-step Euler sampler: a plain loop over an explicit list of noise levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.contract.schedule import find_schedule_fault


@dataclass(frozen=True)
class Step:
    """One finished step: latents went from `sigma` to `sigma_next`, x_index to x_{index+1}."""

    index: int
    sigma: float
    sigma_next: float
    latents: Tensor  # x_{index+1}, the shape of the noise


def seeded_noise(seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 noise on the CPU: the same seed gives the same noise on every device."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: must be 0 to 2^64 - 1, not {seed}")
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed))


def euler(x: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One explicit step along a velocity."""
    return x + (sigma_next - sigma) * velocity


def noised(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Clean latents at noise level `sigma`, on the straight path that rectified flow learns."""
    return (1 - sigma) * clean + sigma * noise


def sample(
    velocity: Callable[[Tensor, float], Tensor],
    latents: Tensor,
    sigmas: Sequence[float],
    start_step: int = 0,
) -> Iterator[Step]:
    """Integrate dx = v dsigma by explicit Euler from `latents` = x_{start_step}.

    velocity(x, sigma) returns the velocity in the shape of x. Yields after every step; the caller stops
    by not asking for the next one. `latents` is never written to. Arguments are checked at the call, before
    the first step: raises ValueError where `sigmas` is no schedule (services.contract.schedule) or
    `start_step` is none of its steps.
    """
    if fault := find_schedule_fault(sigmas):
        raise ValueError(f"sigmas: {fault}")
    if not 0 <= start_step < len(sigmas) - 1:
        raise ValueError(f"start_step: must be 0 to {len(sigmas) - 2}, not {start_step}")
    return _steps(velocity, latents, tuple(sigmas), start_step)


def _steps(
    velocity: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: tuple[float, ...], start: int
) -> Iterator[Step]:
    for i in range(start, len(sigmas) - 1):
        x = euler(x, velocity(x, sigmas[i]), sigmas[i], sigmas[i + 1])
        yield Step(i, sigmas[i], sigmas[i + 1], x)
