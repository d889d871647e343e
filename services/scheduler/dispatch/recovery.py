"""Jobs that no task works on: requeues them, or ends those that are overdue or crashed too often."""

from __future__ import annotations

from collections.abc import Container, Iterable
from functools import partial

from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.scheduler.jobs.states import ENDED, IN_QUEUE, UNFINISHED, State
from services.scheduler.jobs.store import Job, JobStore, OwnedJob
from services.scheduler.jobs.video_store import VideoStore

log = get_logger("recovery")


class Recovery:
    """Requeues and ends jobs.

    Args:
        max_crashes: number of service crashes during one job after which it fails.
    """

    def __init__(self, store: JobStore, videos: VideoStore, max_crashes: int) -> None:
        self._store = store
        self._videos = videos
        self._max_crashes = max_crashes

    async def end_overdue(self, job_ids: Iterable[str]) -> None:
        """Ends waiting jobs whose deadline has passed."""
        for job_id in job_ids:
            job = await self._store.get(job_id)
            if job is not None:
                await self.fail(job_id, job.deadline.exceeded(), owner=None)

    async def release(self, job_id: str, crashed: bool = False, change: str = "") -> None:
        """Requeues a job whose task has ended. Arguments as of `JobStore.advance`."""
        requeue = partial(
            self._store.advance, job_id, owner=self._store.scheduler_id, crashed=crashed, change=change
        )
        if await requeue({State.RUNNING}, [queued(1)]) is None:
            await requeue(IN_QUEUE, [])

    async def hold(self, job_id: str, reason: pb.GenerationEvent) -> None:
        """Returns a claimed job to the queue before its run; its watchers see the reason if it was queued."""
        own = self._store.scheduler_id
        if await self._store.advance(job_id, {State.QUEUED}, [reason], owner=own) is None:
            await self._store.advance(job_id, IN_QUEUE, [], owner=own)

    async def fail(self, job_id: str, error: ChorusError, owner: str | None, change: str = "") -> Job | None:
        """Ends a job with an error. Arguments and result as of `JobStore.advance`."""
        failed = pb.GenerationEvent(failed=pb.FailedEvent(error=errors.to_job_error(error)))
        ended = await self._store.advance(job_id, UNFINISHED, [failed], owner=owner, change=change)
        if ended is not None:
            log.warning("failed", generation_id=job_id, error=error.message)
        return ended

    async def requeue_abandoned(self, owned: Iterable[OwnedJob], busy: Container[str]) -> None:
        """Requeues jobs, except for those of this scheduler that are in `busy`.

        Args:
            owned: jobs of this scheduler, and of those whose lease has ended.
            busy: ids of the jobs that this scheduler works on.
        """
        for job in owned:
            if job.owner != self._store.scheduler_id or job.job_id not in busy:
                await self._requeue(job)

    async def _requeue(self, owned: OwnedJob) -> None:
        job = await self._store.get(owned.job_id)
        if job is None or job.state in ENDED:
            return
        if job.deadline.passed():
            # A run whose failure could not be recorded before the deadline is no crash.
            ended = await self.fail(job.job_id, job.deadline.exceeded(), owned.owner)
        elif job.state is not State.RUNNING:
            await self._store.advance(job.job_id, IN_QUEUE, [], owner=owned.owner)
            return
        elif job.crashes + 1 >= self._max_crashes:
            ended = await self.fail(job.job_id, too_many_crashes(job.crashes + 1), owned.owner)
        else:
            log.warning(
                "interrupted job requeued", generation_id=job.job_id, attempts=job.generation.attempts
            )
            ended = await self._store.advance(
                job.job_id, {State.RUNNING}, [queued(1)], owner=owned.owner, crashed=True
            )
        # Only then: the job may meanwhile have another owner, whose video stays.
        if ended is not None:
            await self._discard_video(ended)

    async def _discard_video(self, job: Job) -> None:
        """Removes what an interrupted run wrote. A file that stays delays no job."""
        try:
            await self._videos.discard(job.job_id, job.generation.attempts)
        except (ChorusError, OSError) as error:
            log.warning("video of an interrupted run not removed", generation_id=job.job_id, error=str(error))


def queued(position: int) -> pb.GenerationEvent:
    """Returns the event of a job that waits at a position of the queue, from 1."""
    return pb.GenerationEvent(queued=pb.QueuedEvent(queue_position=position))


def too_many_crashes(crashes: int) -> ChorusError:
    """Returns the error that ends a job during which services died too often."""
    return ChorusError(
        errors.INTERNAL,
        f"failed: a service died {crashes} times while it worked on this generation"
        " (CHORUS_SCHEDULER_MAX_CRASHES)",
        metadata={"crashes": str(crashes)},
    )


def internal_error(job: Job) -> ChorusError:
    """Returns the error that ends a job after a fault of this program."""
    trace_id = job.generation.trace_id
    return ChorusError(
        errors.INTERNAL,
        "internal error; the scheduler's log has its cause",
        metadata={"trace_id": trace_id} if trace_id else {},
    )
