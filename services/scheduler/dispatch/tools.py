"""What an attempt at a job works with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.scheduler.dispatch.rerank import Reranker
from services.scheduler.dispatch.throughput import Throughput
from services.scheduler.jobs.store import Job, JobStore
from services.scheduler.jobs.video_files import Videos
from services.scheduler.peers.downstream import Downstream
from services.scheduler.peers.model_registry import ModelRegistry
from services.scheduler.settings import SchedulerSettings


@dataclass(frozen=True)
class Tools:
    """Shared by all attempts, which own none of it.

    Args:
        clock: Unix seconds.
    """

    store: JobStore
    videos: Videos
    catalogue: ModelRegistry
    downstream: Downstream
    pace: Throughput
    reranker: Reranker
    settings: SchedulerSettings
    clock: Callable[[], float] = time.time

    def seconds_left(self, job: Job) -> float:
        """Until the deadline; raises DEADLINE_EXCEEDED when it has passed."""
        left = job.deadline - self.clock()
        if left <= 0:
            raise too_late(job)
        return left


def too_late(job: Job) -> ChorusError:
    deadline = job.generation.spec.deadline.ToJsonString()
    return ChorusError(
        errors.DEADLINE_EXCEEDED,
        f"the deadline {deadline} passed before the video was ready; submit it again with a later one",
        metadata={"deadline": deadline},
    )
