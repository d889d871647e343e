"""Few-step samplers: a plain loop over an explicit list of noise levels.

Both samplers follow the straight path that rectified flow learns. `euler` goes on along the velocity and adds
nothing. `renoise` predicts the clean data and adds fresh noise at the next level, which weights from
distribution matching distillation need. Noise is a function of seed, shape and step boundary, so a run can be
repeated, and resumed at any boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from services.contract.schedule import find_schedule_fault

Sampler = Literal["euler", "renoise"]

# Returns the noise of a step boundary.
BoundaryNoise = Callable[[int], Tensor]

_WORD = 2**32


def seeded_noise(seed: int, shape: Sequence[int], boundary: int = 0) -> Tensor:
    """Draws standard normal float32 noise on the CPU, so that a seed gives the same noise on every device.

    Torch's CPU generator reads 32 bits of a seed, so it draws only x_0 of seeds below 2^32. All other noise
    is drawn by NumPy's RandomState, whose stream is frozen, from the low word of the seed, its high word and
    the boundary.

    Args:
        boundary: Step boundary: 0 for x_0, i for the noise that `renoise` adds to reach x_i.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: must be 0 to 2^64 - 1, not {seed}")
    if boundary == 0 and seed < _WORD:
        return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed))
    state = np.random.RandomState([seed % _WORD, seed // _WORD, boundary])
    return torch.from_numpy(state.standard_normal(tuple(shape))).float()


def euler_step(x: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Takes one explicit step along a velocity."""
    return x + (sigma_next - sigma) * velocity


def renoise_step(x: Tensor, velocity: Tensor, sigma: float, sigma_next: float, noise: Tensor) -> Tensor:
    """Predicts the clean data and adds fresh noise at the next level."""
    return add_noise(x - sigma * velocity, noise, sigma_next)


def add_noise(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Brings clean latents to noise level `sigma`, on the straight path that rectified flow learns."""
    return (1 - sigma) * clean + sigma * noise


def remove_noise(x: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Inverts `add_noise`. `sigma` must be below 1."""
    return (x - sigma * noise) / (1 - sigma)


def sample(
    velocity: Callable[[Tensor, float], Tensor],
    latents: Tensor,
    sigmas: Sequence[float],
    start_step: int = 0,
    fresh_noise: BoundaryNoise | None = None,
) -> Iterator[Tensor]:
    """Integrates dx = v dsigma from `latents` = x_{start_step}.

    Yields x_{start_step + 1} … x_N, in the shape of `latents`, which is never written to; a caller may stop
    early. Arguments are checked at the call, before the first step.

    Args:
        velocity: Returns the velocity at x and sigma, in the shape of x.
        sigmas: N + 1 noise levels.
        fresh_noise: Noise that `renoise` adds to reach a boundary, in the shape of x. None means `euler`.

    Raises ValueError if `sigmas` is not a valid schedule (services.contract.schedule) or `start_step` is not
    one of its steps.
    """
    if fault := find_schedule_fault(sigmas):
        raise ValueError(f"sigmas: {fault}")
    if not 0 <= start_step < len(sigmas) - 1:
        raise ValueError(f"start_step: must be 0 to {len(sigmas) - 2}, not {start_step}")
    return _take_steps(velocity, latents, tuple(sigmas), start_step, fresh_noise)


def _take_steps(
    velocity: Callable[[Tensor, float], Tensor],
    x: Tensor,
    sigmas: tuple[float, ...],
    start: int,
    fresh_noise: BoundaryNoise | None,
) -> Iterator[Tensor]:
    for i in range(start, len(sigmas) - 1):
        here, there = sigmas[i], sigmas[i + 1]
        # At sigma 0 no noise is left, and both samplers take the same step.
        if fresh_noise is None or there == 0:
            x = euler_step(x, velocity(x, here), here, there)
        else:
            x = renoise_step(x, velocity(x, here), here, there, fresh_noise(i + 1))
        yield x
