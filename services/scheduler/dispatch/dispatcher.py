"""Dispatches queued jobs, first come first served, to as many attempts as may run at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.scheduler.dispatch.attempt import AttemptRunner
from services.scheduler.dispatch.retry import RetryableFailure
from services.scheduler.jobs.passing_faults import PassingFault, find_passing_fault, wait_out
from services.scheduler.jobs.states import ENDED, IN_QUEUE, UNFINISHED, State
from services.scheduler.jobs.store import Job, JobStore, QueuedJob, StoreError
from services.scheduler.jobs.video_files import VideoFiles
from services.scheduler.peers.health import PeerHealth
from services.scheduler.settings import SchedulerSettings

log = get_logger("dispatcher")

# Pause before the first retry of a job, in seconds.
_FIRST_PAUSE = 0.1
# Number of jobs at the head of the queue whose moves become events; other positions are read on request.
_ANNOUNCED_POSITIONS = 10
# Upper bound on a server-requested retry delay, in seconds.
_MAX_SERVER_PAUSE = 30.0
# Pause after a fault of the job store or another resource, in seconds.
_FAULT_PAUSE = 1.0
# Upper bound on the wait for attempts whose jobs have ended during the drain, in seconds.
_DRAIN_SECONDS = 5.0


@dataclass
class _Pause:
    """Pause of a job before its next attempt.

    Attributes:
        until: end of the pause, in monotonic seconds.
        seconds: length of the pause.
        service: the service that failed.
    """

    until: float
    seconds: float
    service: str


class Dispatcher:
    """Owns the tasks that work on jobs. `run` is its loop; `stop` ends it.

    Args:
        required_peers: health of those services without which no job can run.

    Attributes:
        queued: number of jobs that wait for their start, at the latest look at the queue.
        oldest_created: time at which the first of them was submitted, in Unix seconds; 0 for an empty queue.
    """

    def __init__(
        self,
        attempt_runner: AttemptRunner,
        store: JobStore,
        videos: VideoFiles,
        required_peers: Sequence[PeerHealth],
        settings: SchedulerSettings,
    ) -> None:
        self._attempt_runner = attempt_runner
        self._store = store
        self._videos = videos
        self._required_peers = required_peers
        self._settings = settings
        self._wake = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pauses: dict[str, _Pause] = {}
        self._stopping = False
        self.queued = 0
        self.oldest_created = 0.0
        self._head = ""  # the job that `oldest_created` belongs to

    @property
    def running(self) -> int:
        """Number of jobs that tasks work on."""
        return len(self._tasks)

    def wake(self) -> None:
        """Requests another look at the queue, after a change to a job or a service."""
        self._wake.set()

    def handle_health_change(self, peer: PeerHealth) -> None:
        """Ends every pause when a peer has become available, so that waiting jobs are retried at once."""
        if peer.serving:
            for pause in self._pauses.values():
                pause.until = 0.0
        self._wake.set()

    async def abandon(self, job_id: str) -> None:
        """Stops the run of a cancelled job, at the next step, and removes its video."""
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._videos.remove([job_id])
        self._wake.set()

    async def positions(self) -> dict[str, int]:
        """Returns the position in the queue, from 1, of each job that no task works on."""
        queue = sort_queue(job for job in self._idle(await self._store.unfinished()) if job.state in IN_QUEUE)
        return {job.job_id: position for position, job in enumerate(queue, 1)}

    async def recover(self) -> None:
        """Requeues jobs that were running when the last process died; `run` requeues those that remain."""
        try:
            for queued in self._idle(await self._store.unfinished()):
                if queued.state is State.RUNNING:
                    await self._recover(queued.job_id)
        except PassingFault as fault:
            log.warning("interrupted jobs not requeued yet", error=fault.message)

    async def run(self) -> None:
        """Runs until it is cancelled. A fault is logged and retried; StoreError, which remains, is raised."""
        while True:
            try:
                pause = await self._tick()
            except StoreError:
                raise
            except Exception as error:
                if isinstance(error, PassingFault):
                    log.warning("queue not processed", error=error.message)
                else:
                    log.exception("queue not processed")
                pause = _FAULT_PAUSE
                self._wake.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """Starts no more jobs, ends the runs of unfinished ones and durably requeues these."""
        self._stopping = True
        unfinished = dict(self._tasks)
        finished = set()
        try:
            for job_id in tuple(unfinished):
                job = await self._store.get(job_id)
                if job is not None and job.state in ENDED:
                    finished.add(unfinished.pop(job_id))
        except PassingFault as fault:
            log.warning("running jobs not read", error=fault.message)
        for task in unfinished.values():
            task.cancel()
        await asyncio.gather(*unfinished.values(), return_exceptions=True)
        try:
            for job_id in unfinished:
                await self._store.advance(job_id, {State.RUNNING}, [_queued(1)])
        except PassingFault as fault:
            log.warning("running jobs not requeued; the next start requeues them", error=fault.message)
        if finished:
            _, late = await asyncio.wait(finished, timeout=_DRAIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _tick(self) -> float | None:
        """Looks at the queue once. Returns the seconds until the next look, or None to wait for `wake`."""
        self._wake.clear()
        jobs = await self._store.unfinished()
        if self._stopping:
            return None
        idle = self._idle(jobs)
        unfinished = {job.job_id for job in jobs}
        self._pauses = {job_id: pause for job_id, pause in self._pauses.items() if job_id in unfinished}
        now = time.time()
        for queued in idle:
            # A run whose failure could not be recorded before the deadline is no crash.
            if queued.deadline <= now:
                await self._expire(queued.job_id)
            elif queued.state is State.RUNNING:
                await self._recover(queued.job_id)
        queue = sort_queue(job for job in idle if job.state in IN_QUEUE and job.deadline > now)
        await self._start(queue)
        queue = self._idle(queue)
        await self._announce(queue)
        await self._note_queue(queue)
        due = [job.deadline - now for job in queue]
        pauses = [self._pauses[job.job_id] for job in queue if job.job_id in self._pauses]
        due += [left for pause in pauses if (left := pause.until - time.monotonic()) > 0]
        return max(0.01, min(due)) if due else None

    async def _start(self, queue: list[QueuedJob]) -> None:
        """Starts jobs in the free slots, or marks the next jobs as waiting for a service."""
        if any(peer.serving is None for peer in self._required_peers):
            return
        unavailable = next((peer for peer in self._required_peers if not peer.serving), None)
        now = time.monotonic()
        paused = {job_id for job_id, pause in self._pauses.items() if pause.until > now}
        free = self._settings.concurrency - len(self._tasks)
        for queued in select_jobs(queue, paused, free):
            if unavailable is not None:
                await self._record_wait(queued, unavailable)
                continue
            job = await self._store.get(queued.job_id)
            if job is not None and job.state in IN_QUEUE and not self._stopping:
                task = asyncio.create_task(self._work(job), name=f"job {job.job_id}")
                self._tasks[job.job_id] = task
                task.add_done_callback(partial(self._done, job.job_id))

    def _done(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._tasks[job_id]
        self._wake.set()
        if not task.cancelled() and (cause := task.exception()) is not None:
            log.error("attempt ended without an outcome", generation_id=job_id, exc_info=cause)

    async def _work(self, job: Job) -> None:
        """Runs one attempt and records its outcome. Raises only CancelledError."""
        with structlog.contextvars.bound_contextvars(generation_id=job.job_id):
            try:
                try:
                    with telemetry.span(
                        semconv.SPAN_GENERATION,
                        {
                            semconv.GENERATION_ID: job.job_id,
                            semconv.GEN_AI_OPERATION: "generate_content",
                            semconv.GEN_AI_MODEL: job.generation.spec.model_id,
                        },
                        parent=job.traceparent or None,
                    ) as span:
                        await self._attempt_runner.run(job, span)
                except RetryableFailure as failure:
                    await self._retry(job, failure)
                except PassingFault as fault:
                    await self._retry(job, RetryableFailure("scheduler", fault))
                except ChorusError as error:
                    await wait_out(partial(self._fail, job.job_id, error), job.deadline)
                except Exception as error:
                    if passing := find_passing_fault(error, "the scheduler"):
                        await self._retry(job, RetryableFailure("scheduler", passing))
                    else:
                        log.exception("attempt failed")
                        await wait_out(partial(self._fail, job.job_id, _internal(job)), job.deadline)
                else:
                    self._pauses.pop(job.job_id, None)
                await self._prune()
            except Exception:
                # The store has the job in its last state: the next look at the queue continues from there.
                log.exception("outcome of the attempt not recorded")

    async def _retry(self, job: Job, failure: RetryableFailure) -> None:
        """Schedules another attempt, unless services died too often during this job."""
        log.warning("attempt interrupted", peer=failure.service, error=failure.cause.message)
        if failure.crashed and job.crashes + 1 >= self._settings.max_crashes:
            await wait_out(partial(self._fail, job.job_id, _too_many_crashes(job.crashes + 1)), job.deadline)
            return
        before = self._pauses.get(job.job_id)
        seconds = min(2 * before.seconds, self._settings.retry_seconds) if before else _FIRST_PAUSE
        if failure.cause.reason == errors.QUEUE_FULL and failure.cause.retry_after:
            seconds = max(seconds, min(failure.cause.retry_after, _MAX_SERVER_PAUSE))
        self._pauses[job.job_id] = _Pause(time.monotonic() + seconds, seconds, failure.service)
        announced = before is not None and before.service == failure.service
        await wait_out(partial(self._record_interruption, job.job_id, failure, announced), job.deadline)

    async def _record_interruption(self, job_id: str, failure: RetryableFailure, announced: bool) -> None:
        """Makes a job wait.

        Args:
            announced: whether the job's watchers know already that this service failed.
        """
        current = await self._store.get(job_id)
        if current is not None and current.state is State.WAITING and announced:
            return
        await self._store.advance(job_id, UNFINISHED, [_waiting(failure.cause)], crashed=failure.crashed)

    async def _record_wait(self, queued: QueuedJob, peer: PeerHealth) -> None:
        """Records that the next job to start waits for a service."""
        pause = self._pauses.get(queued.job_id)
        if queued.state is State.WAITING and pause is not None and pause.service == peer.name:
            return
        self._pauses[queued.job_id] = _Pause(0.0, _FIRST_PAUSE, peer.name)
        await self._store.advance(queued.job_id, IN_QUEUE, [_waiting(peer.unavailable())])

    async def _recover(self, job_id: str) -> None:
        job = await self._store.get(job_id)
        if job is None or job.state is not State.RUNNING:
            return
        await self._discard_video(job_id)
        if job.crashes + 1 >= self._settings.max_crashes:
            await self._fail(job_id, _too_many_crashes(job.crashes + 1))
            return
        log.warning("interrupted job requeued", generation_id=job_id, attempts=job.generation.attempts)
        await self._store.advance(job_id, {State.RUNNING}, [_queued(1)], crashed=True)
        self._wake.set()

    async def _expire(self, job_id: str) -> None:
        job = await self._store.get(job_id)
        if job is not None:
            if job.state is State.RUNNING:
                await self._discard_video(job_id)
            await self._fail(job_id, job.deadline.exceeded())

    async def _discard_video(self, job_id: str) -> None:
        """Removes what an interrupted run wrote. A file that stays is overwritten, and delays no job."""
        try:
            await self._videos.remove([job_id])
        except (ChorusError, OSError) as error:
            log.warning("video of an interrupted run not removed", generation_id=job_id, error=str(error))

    async def _fail(self, job_id: str, error: ChorusError) -> None:
        failed = pb.GenerationEvent(failed=pb.FailedEvent(error=errors.to_job_error(error)))
        if await self._store.advance(job_id, UNFINISHED, [failed]) is not None:
            log.warning("failed", generation_id=job_id, error=error.message)

    async def _announce(self, queue: list[QueuedJob]) -> None:
        """Records the new positions of the jobs at the head of the queue."""
        for position, queued in enumerate(queue[:_ANNOUNCED_POSITIONS], 1):
            if queued.state is State.QUEUED and queued.announced != position:
                await self._store.advance(queued.job_id, {State.QUEUED}, [_queued(position)])

    async def _note_queue(self, queue: list[QueuedJob]) -> None:
        """Notes what the metrics show of the queue."""
        self.queued = len(queue)
        head = queue[0].job_id if queue else ""
        if head != self._head:
            job = await self._store.get(head) if head else None
            self.oldest_created = job.generation.create_time.ToNanoseconds() / 1e9 if job else 0.0
            self._head = head

    async def _prune(self) -> None:
        """Removes surplus ended jobs, files first: after a crash in between, the row still names its file."""
        surplus = await self._store.surplus(self._settings.keep_generations)
        if surplus:
            await self._videos.remove(surplus)
            await self._store.forget(surplus)

    def _idle(self, jobs: Iterable[QueuedJob]) -> list[QueuedJob]:
        return [queued for queued in jobs if queued.job_id not in self._tasks]


def sort_queue(jobs: Iterable[QueuedJob]) -> list[QueuedJob]:
    """Returns jobs in the order of their start. A job that waits for a service keeps its place."""
    return sorted(jobs, key=lambda job: job.number)


def select_jobs(ordered: Iterable[QueuedJob], paused: Collection[str], free: int) -> list[QueuedJob]:
    """Returns the jobs to start now: at most `free`, in order, without those that are paused."""
    return [job for job in ordered if job.job_id not in paused][: max(free, 0)]


def _queued(position: int) -> pb.GenerationEvent:
    return pb.GenerationEvent(queued=pb.QueuedEvent(queue_position=position))


def _waiting(cause: ChorusError) -> pb.GenerationEvent:
    return pb.GenerationEvent(waiting=pb.WaitingEvent(cause=errors.to_job_error(cause)))


def _internal(job: Job) -> ChorusError:
    trace_id = job.generation.trace_id
    return ChorusError(
        errors.INTERNAL,
        "internal error; the scheduler's log has its cause",
        metadata={"trace_id": trace_id} if trace_id else {},
    )


def _too_many_crashes(crashes: int) -> ChorusError:
    return ChorusError(
        errors.INTERNAL,
        f"failed: a service died {crashes} times while it worked on this generation"
        " (CHORUS_SCHEDULER_MAX_CRASHES)",
        metadata={"crashes": str(crashes)},
    )
