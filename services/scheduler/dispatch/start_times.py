"""When queued jobs are expected to start, by the expected durations of the runs before them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from heapq import heapify, heapreplace
from typing import Final

from services.scheduler.dispatch.throughput import Throughput, expected_seconds
from services.scheduler.jobs.ordering import Priority
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import Job, JobStore
from services.scheduler.peers.denoiser_pool import DenoiserPool
from services.scheduler.peers.health import Peer

# Upper bound on the jobs at the head of the queue whose starts are computed.
MAX_PREDICTED: Final = 1_000
# Time for which the result of one computation answers every question, in seconds.
_REFRESH_SECONDS: Final = 1.0


class StartTimes:
    """Expected starts of the first jobs of the queue, and of one that would join it.

    They are computed at most once a second, and only if someone asks, with two statements of a bounded number
    of rows; every answer in between is a look into a mapping.

    Args:
        required_peers: those services without which no job can start.
        tenant_concurrency: bound on the runs of a tenant at once; 0 for none. With a bound no start is
            predicted, because jobs may then be overtaken.
    """

    def __init__(
        self,
        store: JobStore,
        throughput: Throughput,
        denoisers: DenoiserPool,
        required_peers: Sequence[Peer],
        tenant_concurrency: int,
    ) -> None:
        self._store = store
        self._throughput = throughput
        self._denoisers = denoisers
        self._required_peers = required_peers
        self._tenant_concurrency = tenant_concurrency
        self._computing = asyncio.Lock()
        self._starts: Mapping[str, float] = {}
        # Class and expected end of each run, in Unix seconds.
        self._ends: Sequence[tuple[int, float | None]] = ()
        self._expires = 0.0  # monotonic seconds

    def forget(self) -> None:
        """Makes the next question compute the starts again, after a change to the order of the queue."""
        self._expires = 0.0

    async def find(self) -> Mapping[str, float]:
        """Returns the expected starts by job id, in Unix seconds; a job whose start is unknown is absent."""
        await self._refresh()
        return self._starts

    async def until_free(self, priority: Priority) -> float:
        """Returns the expected seconds until a denoiser is free for the first job of the queue; 0 if unknown.

        Args:
            priority: class of the job, to which runs of lower classes give way.
        """
        await self._refresh()
        now = time.time()
        left = [
            0.0 if other < priority else None if end is None else max(0.0, end - now)
            for other, end in self._ends
        ]
        return predict_starts(self._denoisers.slots, left, [("", None)]).get("", 0.0)

    async def _refresh(self) -> None:
        async with self._computing:
            if time.monotonic() >= self._expires:
                self._expires = time.monotonic() + _REFRESH_SECONDS
                self._starts, self._ends = await self._compute()

    async def _compute(self) -> tuple[Mapping[str, float], Sequence[tuple[int, float | None]]]:
        """Returns the expected starts, and the class and the expected end of each run."""
        if self._tenant_concurrency or not all(peer.serving for peer in self._required_peers):
            return {}, ()
        outlook = await self._store.outlook(MAX_PREDICTED)
        now = time.time()
        left = [self._seconds_left(job, work) for job, work in outlook.owned]
        waiting = [(job.job_id, work) for job, work in outlook.waiting]
        # What waits for a service starts when that is available, which nothing predicts.
        queued = {job.job_id for job, _ in outlook.waiting if job.state is State.QUEUED}
        starts = predict_starts(self._denoisers.slots, left, waiting)
        classes = [job.generation.spec.priority or Priority.NORMAL for job, _ in outlook.owned]
        ends = [None if seconds is None else now + seconds for seconds in left]
        return (
            {job_id: now + seconds for job_id, seconds in starts.items() if job_id in queued},
            list(zip(classes, ends, strict=True)),
        )

    def _seconds_left(self, job: Job, work: float | None) -> float | None:
        """Returns the expected seconds until the end of a run; None if they are unknown.

        Args:
            work: expected seconds of the whole run, as the queue knew them.
        """
        generation = job.generation
        model = self._denoisers.models.get(generation.spec.model_id)
        if model is None or not generation.HasField("plan"):
            return work
        plan, decode = generation.plan, self._throughput.decode_seconds(generation.spec)
        step = self._throughput.seconds_per_step(generation.spec, model)
        if not step:
            return work
        steps = plan.total_steps - plan.reuse_steps
        steps_left = min(steps, plan.total_steps - generation.steps_completed)
        denoising = expected_seconds(plan, step, decode) - decode
        return decode + (denoising * steps_left / steps if steps else 0.0)


def predict_starts(
    slots: int, left: Sequence[float | None], waiting: Sequence[tuple[str, float | None]]
) -> dict[str, float]:
    """Returns the seconds until each job starts if each starts in its turn, as soon as a run has ended.

    Args:
        slots: number of jobs that run at once.
        left: seconds until the end of each run under way; with None, for unknown ones, nothing is known.
        waiting: ids of the jobs that wait and the seconds of their runs, in the order of their start; after
            the first None nothing is known.
    """
    known = [seconds for seconds in left if seconds is not None]
    if len(known) < len(left):
        return {}
    # Several schedulers together may run more jobs than this one.
    ends = known + [0.0] * max(0, slots - len(known))
    if not ends:
        return {}
    heapify(ends)
    starts: dict[str, float] = {}
    for job_id, seconds in waiting:
        starts[job_id] = ends[0]
        if seconds is None:
            break
        heapreplace(ends, ends[0] + seconds)
    return starts
