"""Dispatches queued jobs, in the order of the store's queue, to as many attempts as may run at once."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from functools import partial

import structlog
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.scheduler.dispatch.attempt import AttemptRunner
from services.scheduler.dispatch.donors_in_flight import WaitingForDonors, WaitsForDonor, make_event
from services.scheduler.dispatch.forecast import Forecast
from services.scheduler.dispatch.pauses import Pause, forget_pauses, select_jobs
from services.scheduler.dispatch.preemption import Preemption
from services.scheduler.dispatch.queue_counter import QueueCounter
from services.scheduler.dispatch.recovery import Recovery, internal_error, queued, too_many_crashes
from services.scheduler.dispatch.repetition import make_repetition_key
from services.scheduler.dispatch.retry import RetryableFailure
from services.scheduler.jobs.passing_faults import PassingFault, find_passing_fault, wait_out
from services.scheduler.jobs.states import ENDED, IN_QUEUE, UNFINISHED, State
from services.scheduler.jobs.store import Job, JobStore, QueuedJob, StoreError
from services.scheduler.jobs.video_store import VideoStore
from services.scheduler.peers.denoiser_pool import DenoiserPool
from services.scheduler.peers.health import Peer
from services.scheduler.peers.pooled_denoiser import PooledDenoiser
from services.scheduler.settings import SchedulerSettings

log = get_logger("dispatcher")

# Pause before the first retry of a job, in seconds.
_FIRST_PAUSE = 0.1
# Number of jobs at the head of the queue whose moves become events; other positions are read on request.
_ANNOUNCED_POSITIONS = 10
# Number of overdue jobs that one look at the queue ends.
_OVERDUE_BATCH = 100
# Pause after a fault of the job store or another resource, in seconds.
_FAULT_PAUSE = 1.0
# Upper bound on the wait for attempts whose jobs have ended during the drain, in seconds.
_DRAIN_SECONDS = 5.0


class Dispatcher:
    """Owns the tasks that work on jobs. `run` is its loop; `stop` ends it.

    Args:
        forecast: estimates the jobs of the queue after each look at it.
        required_peers: those services without which no job can run.
        denoisers: run the jobs; one of the required peers.

    Attributes:
        counter: figures of the queue.
    """

    def __init__(
        self,
        attempt_runner: AttemptRunner,
        store: JobStore,
        videos: VideoStore,
        forecast: Forecast,
        required_peers: Sequence[Peer],
        denoisers: DenoiserPool,
        settings: SchedulerSettings,
    ) -> None:
        self._attempt_runner = attempt_runner
        self._store = store
        self._videos = videos
        self._forecast = forecast
        self._required_peers = required_peers
        self._denoisers = denoisers
        self.counter = QueueCounter(store)
        self._settings = settings
        self._recovery = Recovery(store, videos, settings.max_crashes)
        self._wake = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Running jobs that a waiting one may repeat: tenant and key by job id.
        self._repeated: dict[str, tuple[str, bytes]] = {}
        self._pauses: dict[str, Pause] = {}
        self._preemption = Preemption(store)
        self._waiting_for_donors = WaitingForDonors()
        self._stopping = False

    @property
    def running(self) -> int:
        """Number of jobs that tasks work on."""
        return len(self._tasks)

    @property
    def slots(self) -> int:
        """Number of jobs that can run at once."""
        return self._denoisers.slots

    def wake(self) -> None:
        """Requests another look at the queue, after a change to a job or a service."""
        self._wake.set()

    def handle_health_change(self, peer: Peer) -> None:
        """Ends every pause when a peer has become available, so that waiting jobs are retried at once."""
        if peer.serving:
            for pause in self._pauses.values():
                pause.until = 0.0
        self._wake.set()

    async def abandon(self, job_id: str) -> None:
        """Stops the run of a cancelled job, at the next step, and removes its video."""
        await self._stop_task(job_id)
        await self._videos.remove([job_id])
        self._wake.set()

    async def follow_change(self, job_id: str) -> None:
        """Follows a change that another scheduler made: it may have ended a job that runs here."""
        if job_id in self._tasks:
            job = await self._store.get(job_id)
            if job is None or job.state is State.CANCELLED:
                await self.abandon(job_id)
            elif job.state in ENDED:
                # It ran again elsewhere, and its video stays.
                await self._stop_task(job_id)
        self._wake.set()

    async def _stop_task(self, job_id: str) -> None:
        self._pauses.pop(job_id, None)
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def follow_all_changes(self) -> None:
        """Follows changes of other schedulers that may have been missed."""
        for job_id in tuple(self._tasks):
            await self.follow_change(job_id)
        self._wake.set()

    async def recover(self) -> None:
        """Requeues the jobs of schedulers that died; `run` requeues those that remain."""
        try:
            look = await self._store.look(time.time(), 0, 0)
            await self._recovery.requeue_abandoned(look.owned, self._tasks)
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
                await self._recovery.release(job_id)
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
        if self._stopping:
            return None
        free = self._denoisers.slots - len(self._tasks)
        wanted = max(free, 0) + len(self._pauses) + len(self._waiting_for_donors) + _ANNOUNCED_POSITIONS
        look = await self._store.look(time.time(), wanted, _OVERDUE_BATCH, self._settings.tenant_concurrency)
        await self._recovery.end_overdue(look.overdue)
        await self._recovery.requeue_abandoned(look.owned, self._tasks)
        for job_id in look.overdue:
            self._pauses.pop(job_id, None)
        # The store lists what ends here as waiting a moment before its task has ended.
        gone = {*look.overdue, *self._tasks}
        queue = [job for job in look.first if job.job_id not in gone]
        self._pauses = forget_pauses(self._pauses, {job.job_id for job in queue})
        head = {job.job_id for job in (*look.first, *look.startable)}
        self._waiting_for_donors.retain({*self._tasks, *head})
        started = await self._start([job for job in look.startable if job.job_id not in gone], free)
        queue = [job for job in queue if job.job_id not in started]
        await self._announce(queue)
        self._forecast.wake()
        due = [await self.counter.count(), self._denoisers.rest_seconds() or None]
        if look.next_deadline is not None:
            due.append(look.next_deadline - time.time())
        now = time.monotonic()
        due += [left for pause in self._pauses.values() if (left := pause.until - now) > 0]
        known = [seconds for seconds in due if seconds is not None]
        return max(0.01, min(known)) if known else None

    async def _start(self, queue: list[QueuedJob], free: int) -> set[str]:
        """Starts jobs in the free slots, or marks the next jobs as waiting for a service.

        Returns the jobs that no longer wait.
        """
        if any(peer.serving is None for peer in self._required_peers):
            return set()
        unavailable = next((peer for peer in self._required_peers if not peer.serving), None)
        now = time.monotonic()
        paused = {job_id for job_id, pause in self._pauses.items() if pause.until > now}
        paused |= self._waiting_for_donors.find_waiting(self._tasks)
        gone: set[str] = set()
        if unavailable is not None:
            for waiting in select_jobs(queue, paused, free):
                await self._record_wait(waiting, unavailable.unavailable())
            return gone
        for waiting in select_jobs(queue, paused, len(queue)):
            if self._stopping or not (self._denoisers.free_slots or self._denoisers.lacks_model()):
                break
            job = await self._store.get(waiting.job_id)
            if job is None or self._repeats_running(job):
                continue
            model_id = job.generation.spec.model_id
            denoiser = self._denoisers.reserve(model_id)
            if denoiser is not None:
                gone.add(waiting.job_id)
                await self._claim(waiting, denoiser)
            elif (outage := self._denoisers.find_outage(model_id)) is not None:
                await self._record_wait(waiting, outage)
        if not self._denoisers.free_slots and self._settings.resume_bytes and not self._stopping:
            waiting_jobs = [job for job in queue if job.job_id not in paused | gone]
            for job_id in await self._preemption.make_room(waiting_jobs, self._repeats_running):
                self._attempt_runner.pause(job_id)
        return gone

    async def _claim(self, waiting: QueuedJob, denoiser: PooledDenoiser) -> None:
        """Starts a job in a slot of a denoiser, and returns the slot if another scheduler has the job."""
        task, job_id = None, waiting.job_id
        try:
            job = await self._store.claim(job_id, self._settings.tenant_concurrency)
            if job is not None and not self._stopping:
                task = asyncio.create_task(self._work(job, denoiser), name=f"job {job_id}")
                self._tasks[job_id] = task
                self._preemption.start(waiting, denoiser)
                if (key := make_repetition_key(job.generation)) is not None:
                    self._repeated[job_id] = (job.tenant, key)
                task.add_done_callback(partial(self._done, job_id, denoiser))
        finally:
            if task is None:
                denoiser.release()

    def _repeats_running(self, job: Job) -> bool:
        """Returns whether a job repeats a running one, whose result will answer it without a computation."""
        return (job.tenant, make_repetition_key(job.generation)) in self._repeated.values()

    def _done(self, job_id: str, denoiser: PooledDenoiser, task: asyncio.Task[None]) -> None:
        denoiser.release()
        del self._tasks[job_id]
        self._repeated.pop(job_id, None)
        self._preemption.end(job_id)
        self._wake.set()
        if not task.cancelled() and (cause := task.exception()) is not None:
            log.error("attempt ended without an outcome", generation_id=job_id, exc_info=cause)

    async def _work(self, job: Job, denoiser: PooledDenoiser) -> None:
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
                        may_wait = job.job_id not in self._waiting_for_donors
                        await self._attempt_runner.run(job, denoiser, span, may_wait=may_wait)
                except WaitsForDonor as wait:
                    self._waiting_for_donors.add(job.job_id, wait.donor_id)
                    await self._recovery.hold(job.job_id, make_event(wait.donor_id))
                except RetryableFailure as failure:
                    if failure.service == self._denoisers.name:
                        denoiser.report_failure(failure.cause, failure.crashed)
                    await self._retry(job, failure)
                except PassingFault as fault:
                    await self._retry(job, RetryableFailure("scheduler", fault))
                except ChorusError as error:
                    await self._fail_own(job, error)
                except Exception as error:
                    if passing := find_passing_fault(error, "the scheduler"):
                        await self._retry(job, RetryableFailure("scheduler", passing))
                    else:
                        log.exception("attempt failed")
                        await self._fail_own(job, internal_error(job))
                else:
                    denoiser.report_success()
                    self._pauses.pop(job.job_id, None)
            except Exception:
                # The store has the job in its last state: the next look at the queue continues from there.
                log.exception("outcome of the attempt not recorded")

    async def _retry(self, job: Job, failure: RetryableFailure) -> None:
        """Schedules another attempt, unless services died too often during this job."""
        log.warning("attempt interrupted", peer=failure.service, error=failure.cause.message)
        if failure.crashed and job.crashes + 1 >= self._settings.max_crashes:
            await self._fail_own(job, too_many_crashes(job.crashes + 1))
            return
        model_id = job.generation.spec.model_id
        if failure.service == self._denoisers.name and self._denoisers.can_run(model_id):
            self._pauses.pop(job.job_id, None)
            requeue = partial(self._recovery.release, job.job_id, failure.crashed, _new_change())
            await wait_out(requeue, job.deadline)
            return
        before = self._pauses.get(job.job_id)
        seconds = min(2 * before.seconds, self._settings.retry_seconds) if before else _FIRST_PAUSE
        if failure.cause.reason == errors.QUEUE_FULL:
            seconds = max(seconds, self._denoisers.rest_seconds(model_id))
        self._pauses[job.job_id] = Pause(time.monotonic() + seconds, seconds, failure.service)
        announced = before is not None and before.service == failure.service
        record = partial(self._record_interruption, job.job_id, failure, announced, _new_change())
        await wait_out(record, job.deadline)

    async def _record_interruption(
        self, job_id: str, failure: RetryableFailure, announced: bool, change: str
    ) -> None:
        """Makes a job wait.

        Args:
            announced: whether the job's watchers know already that this service failed.
            change: names the change of the job, which is recorded once.
        """
        current = await self._store.get(job_id)
        known = current is not None and current.state is State.WAITING and announced
        await self._store.advance(
            job_id,
            UNFINISHED,
            [] if known else [_waiting(failure.cause)],
            owner=self._store.scheduler_id,
            crashed=failure.crashed,
            change=change,
        )

    async def _record_wait(self, queued: QueuedJob, cause: ChorusError) -> None:
        """Records that the next job to start waits for a service."""
        pause, service = self._pauses.get(queued.job_id), cause.metadata["service"]
        if queued.state is State.WAITING and pause is not None and pause.service == service:
            return
        self._pauses[queued.job_id] = Pause(0.0, _FIRST_PAUSE, service)
        await self._store.advance(queued.job_id, IN_QUEUE, [_waiting(cause)], owner=None)

    async def _fail_own(self, job: Job, error: ChorusError) -> None:
        """Ends a job of this scheduler; waits while the store cannot be written."""
        fail = partial(self._recovery.fail, job.job_id, error, self._store.scheduler_id, _new_change())
        await wait_out(fail, job.deadline)

    async def _announce(self, queue: list[QueuedJob]) -> None:
        """Records the new positions of the jobs at the head of the queue."""
        for position, job in enumerate(queue[:_ANNOUNCED_POSITIONS], 1):
            if job.state is State.QUEUED and job.announced != position:
                await self._store.advance(job.job_id, {State.QUEUED}, [queued(position)], owner=None)


def _new_change() -> str:
    """Returns a name for a change of a job, by which its repetition is recognised."""
    return secrets.token_hex(8)


def _waiting(cause: ChorusError) -> pb.GenerationEvent:
    return pb.GenerationEvent(waiting=pb.WaitingEvent(cause=errors.to_job_error(cause)))
