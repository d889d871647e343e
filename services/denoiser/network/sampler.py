"""Few-step Euler sampler: a plain loop over an explicit list of noise levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from services.contract.schedule import find_schedule_fault


def seeded_noise(seed: int, shape: Sequence[int]) -> Tensor:
    """Draws standard normal float32 noise on the CPU, so that a seed gives the same noise on every device."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: must be 0 to 2^64 - 1, not {seed}")
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed))


def euler_step(x: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Takes one explicit step along a velocity."""
    return x + (sigma_next - sigma) * velocity


def add_noise(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Brings clean latents to noise level `sigma`, on the straight path that rectified flow learns."""
    return (1 - sigma) * clean + sigma * noise


def sample(
    velocity: Callable[[Tensor, float], Tensor],
    latents: Tensor,
    sigmas: Sequence[float],
    start_step: int = 0,
) -> Iterator[Tensor]:
    """Integrates dx = v dsigma by explicit Euler from `latents` = x_{start_step}.

    Yields x_{start_step + 1} … x_N, in the shape of `latents`, which is never written to; a caller may stop
    early. Arguments are checked at the call, before the first step.

    Args:
        velocity: Returns the velocity at x and sigma, in the shape of x.
        sigmas: N + 1 noise levels.

    Raises ValueError if `sigmas` is not a valid schedule (services.contract.schedule) or `start_step` is not
    one of its steps.
    """
    if fault := find_schedule_fault(sigmas):
        raise ValueError(f"sigmas: {fault}")
    if not 0 <= start_step < len(sigmas) - 1:
        raise ValueError(f"start_step: must be 0 to {len(sigmas) - 2}, not {start_step}")
    return _euler_steps(velocity, latents, tuple(sigmas), start_step)


def _euler_steps(
    velocity: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: tuple[float, ...], start: int
) -> Iterator[Tensor]:
    for i in range(start, len(sigmas) - 1):
        x = euler_step(x, velocity(x, sigmas[i]), sigmas[i], sigmas[i + 1])
        yield x
