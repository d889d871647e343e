"""Which runs give way to waiting jobs of a higher priority class, at their next step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from services.runtime.logs import get_logger
from services.scheduler.jobs.store import Job, JobStore, QueuedJob
from services.scheduler.peers.pooled_denoiser import PooledDenoiser

log = get_logger("preemption")


class Preemption:
    """Chooses runs to pause; knows the jobs that run, as they were in the queue."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._running: dict[str, tuple[QueuedJob, PooledDenoiser]] = {}
        self._giving_way: set[str] = set()

    def start(self, job: QueuedJob, denoiser: PooledDenoiser) -> None:
        """Notes the start of a run."""
        self._running[job.job_id] = job, denoiser

    def end(self, job_id: str) -> None:
        """Notes the end of a run, or its pause."""
        self._running.pop(job_id, None)
        self._giving_way.discard(job_id)

    async def make_room(
        self, waiting: Sequence[QueuedJob], needs_no_place: Callable[[Job], bool]
    ) -> list[str]:
        """Returns the ids of the runs to pause now.

        Args:
            waiting: as of `choose_runs_to_pause`.
            needs_no_place: returns whether a job is answered without a run of its own.
        """
        lowest = min((job.priority for job, _ in self._running.values()), default=None)
        if lowest is None or not waiting or waiting[0].priority <= lowest:
            return []
        jobs = {each.job_id: await self._store.get(each.job_id) for each in waiting}
        waiting = [each for each in waiting if (job := jobs[each.job_id]) and not needs_no_place(job)]

        def fits(urgent: QueuedJob, run: QueuedJob) -> bool:
            job, entry = jobs[urgent.job_id], self._running.get(run.job_id)
            return bool(job and entry and job.generation.spec.model_id in (entry[1].models or ()))

        running = [job for job, _ in self._running.values()]
        chosen = choose_runs_to_pause(waiting, running, self._giving_way, fits)
        for job_id in chosen:
            log.info("run gives way", generation_id=job_id)
        self._giving_way.update(chosen)
        return chosen


def choose_runs_to_pause(
    waiting: Sequence[QueuedJob],
    running: Iterable[QueuedJob],
    pausing: Collection[str],
    fits: Callable[[QueuedJob, QueuedJob], bool] = lambda urgent, run: True,
) -> list[str]:
    """Returns the ids of the runs to pause, so that waiting jobs start in their places.

    A run gives way to a job of a higher class, and only if that job comes first in the order of the queue as
    well: a run that has waited long enough to overtake the class above is not interrupted by it. The run that
    comes last in that order gives way first.

    Args:
        waiting: jobs that could start now if there were a place for them, in the order of their start.
        running: jobs that run, as they were in the queue.
        pausing: ids of the runs that are about to give way already, to the first waiting jobs.
        fits: returns whether a waiting job could run in the place of a run.
    """
    candidates = sorted(
        (job for job in running if job.job_id not in pausing), key=lambda job: job.order_key, reverse=True
    )
    chosen: list[str] = []
    for urgent in waiting[len(pausing) :]:
        run = next(
            (
                job
                for job in candidates
                if job.priority < urgent.priority and job.order_key > urgent.order_key and fits(urgent, job)
            ),
            None,
        )
        if run is None:
            break
        candidates.remove(run)
        chosen.append(run.job_id)
    return chosen
