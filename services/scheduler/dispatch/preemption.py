"""Which runs give way to waiting jobs of a higher priority class, at their next step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from services.scheduler.jobs.store import QueuedJob


def choose_runs_to_pause(
    waiting: Sequence[QueuedJob], running: Iterable[QueuedJob], pausing: Collection[str]
) -> list[str]:
    """Returns the ids of the runs to pause, so that waiting jobs start in their places.

    A run gives way to a job of a higher class, and only if that job comes first in the order of the queue as
    well: a run that has waited long enough to overtake the class above is not interrupted by it. The run that
    comes last in that order gives way first.

    Args:
        waiting: jobs that could start now if there were a place for them, in the order of their start.
        running: jobs that run, as they were in the queue.
        pausing: ids of the runs that are about to give way already, to the first waiting jobs.
    """
    candidates = sorted(
        (job for job in running if job.job_id not in pausing), key=lambda job: job.order_key, reverse=True
    )
    chosen: list[str] = []
    for urgent in waiting[len(pausing) :]:
        victim = next(
            (
                job
                for job in candidates
                if job.priority < urgent.priority and job.order_key > urgent.order_key
            ),
            None,
        )
        if victim is None:
            break
        candidates.remove(victim)
        chosen.append(victim.job_id)
    return chosen
