"""Noise schedules as plain numbers, with the same rules in the scheduler and the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from chorus_rpc.limits import MAX_STEPS


def shifted_schedule(steps: int, shift: float) -> list[float]:
    """Returns σ(t) = shift·t / (1 + (shift − 1)·t) at t = 1, 1 − 1/steps, …, 0: `steps` + 1 values.

    Shift 5 and 4 steps give 1, 0.9375, 0.8333, 0.625, 0: the schedule of LightX2V's 4-step Wan2.1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    times = [1 - i / steps for i in range(1, steps + 1)]
    # The first value is stated, because rounding moves the formula's above 1 for some shifts.
    return [1.0, *(shift * t / (1 + (shift - 1) * t) for t in times)]


def find_schedule_fault(sigmas: Sequence[float]) -> str | None:
    """Describes what is wrong with a σ list, or returns None: N + 1 values, decreasing, first ≤ 1, last 0."""
    if not 2 <= len(sigmas) <= MAX_STEPS + 1:
        return f"must hold 2 to {MAX_STEPS + 1} values (steps + 1), not {len(sigmas)}"
    if not 0 < sigmas[0] <= 1:
        return f"must start above 0 and at most at 1, not at {sigmas[0]:g}"
    for i, (a, b) in enumerate(pairwise(sigmas)):
        if not a > b:
            return f"must be strictly decreasing, but value {i + 1} ({b:g}) is not below value {i} ({a:g})"
    if sigmas[-1] != 0:
        return f"must end at 0, not at {sigmas[-1]:g}"
    return None
