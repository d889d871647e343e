"""Selects the denoiser of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """Denoiser that can run a job, apart from its load.

    Attributes:
        running: number of runs on it.
        slots: number of runs that it may have at once.
        suspect: whether it crashed during a run lately.
        last_run: number of the latest run of the job's model on it, counted over all denoisers; 0 for none.
    """

    address: str
    running: int
    slots: int
    suspect: bool = False
    last_run: int = 0


def select_denoiser(candidates: Iterable[Candidate]) -> str | None:
    """Returns the address of the denoiser that takes the next run; None if none has a free slot.

    Of those that have not crashed lately, the least loaded one; among equals the one that ran the model last,
    because backends compile parts of a model at its first runs; then by address. Where a donor was used does
    not matter: denoisers keep none.
    """
    free = [each for each in candidates if each.running < each.slots]
    if not free:
        return None
    return min(
        free, key=lambda each: (each.suspect, each.running / each.slots, -each.last_run, each.address)
    ).address
