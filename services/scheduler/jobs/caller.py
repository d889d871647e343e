"""The job on whose behalf a peer service is called."""

from __future__ import annotations

from dataclasses import dataclass

from services.scheduler.jobs.deadline import Deadline


@dataclass(frozen=True)
class Caller:
    """Tenant of a job, and the time by which the job must have ended."""

    tenant: str
    deadline: Deadline
