"""Pauses of jobs before their next attempt."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from services.scheduler.jobs.store import QueuedJob

# Time after its end for which a pause is remembered, so that the next one is longer, in seconds.
_MEMORY_SECONDS = 60.0


@dataclass
class Pause:
    """Pause of a job before its next attempt.

    Attributes:
        until: end of the pause, in monotonic seconds.
        seconds: length of the pause.
        service: the service that failed.
    """

    until: float
    seconds: float
    service: str


def forget_pauses(pauses: Mapping[str, Pause], waiting: Collection[str]) -> dict[str, Pause]:
    """Returns the pauses that ended lately or last, and those of jobs that wait at the head of the queue."""
    end = time.monotonic() - _MEMORY_SECONDS
    return {job_id: pause for job_id, pause in pauses.items() if pause.until > end or job_id in waiting}


def select_jobs(ordered: Iterable[QueuedJob], paused: Collection[str], free: int) -> list[QueuedJob]:
    """Returns the jobs to start now: at most `free`, in order, without those that are paused."""
    return [job for job in ordered if job.job_id not in paused][: max(free, 0)]
