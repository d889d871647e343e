"""Gives jobs to the denoiser, one for each free slot, and settles how each attempt ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import structlog
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.scheduler.dispatch.attempt import attempt
from services.scheduler.dispatch.queue import choose, in_order
from services.scheduler.dispatch.retry import RetryableFailure
from services.scheduler.dispatch.tools import Tools, too_late
from services.scheduler.jobs.states import ENDED, IN_QUEUE, UNFINISHED, State
from services.scheduler.jobs.store import Job, QueuedJob
from services.scheduler.peers.health import Dependency

log = get_logger("dispatch")

_FIRST_PAUSE = 0.1
# How many jobs at the head of the queue are told of each move; the others see their position when they ask.
_TOLD = 10
# However long a busy service asks to be left alone.
_LONGEST_PAUSE = 30.0
# A store that fails is tried again after this many seconds.
_STORE_PAUSE = 1.0
# How long the drain waits for finished runs to hand over their latents.
_DRAIN_SECONDS = 5.0


@dataclass
class _Pause:
    """Why a job is held back for a moment.

    Args:
        until: monotonic seconds.
        seconds: the length of this pause.
        service: that failed.
    """

    until: float
    seconds: float
    service: str


class Dispatcher:
    """Owns the tasks that work on jobs. `run` is its loop; `stop` ends it."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._wake = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pauses: dict[str, _Pause] = {}
        self._stopping = False

    def wake(self) -> None:
        """Something changed: a job came or went, or a service did."""
        self._wake.set()

    def service_changed(self, service: Dependency) -> None:
        if service.serving:
            for pause in self._pauses.values():
                pause.until = 0.0
        self._wake.set()

    async def abandon(self, job_id: str) -> None:
        """The job was cancelled: its run stops at the next step, and its video is not kept."""
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._tools.videos.remove([job_id])
        self._wake.set()

    async def positions(self) -> dict[str, int]:
        """The place in the queue, from 1, of each job that is not being worked on."""
        return _positions(self._idle(await self._tools.store.unfinished()))

    async def recover(self) -> None:
        """Puts back into the queue what was running when the last process died."""
        for ticket in self._idle(await self._tools.store.unfinished()):
            if ticket.state is State.RUNNING:
                await self._recover(ticket.job_id)

    async def run(self) -> None:
        """Until it is cancelled. A store that fails is waited for."""
        while True:
            try:
                pause = await self._tick()
            except Exception:
                log.exception("the job store failed")
                pause = _STORE_PAUSE
                self._wake.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """Takes no more jobs; puts running ones back into the queue, durably, and ends their runs."""
        self._stopping = True
        finished, unfinished = set(), {}
        for job_id, task in list(self._tasks.items()):
            job = await self._tools.store.get(job_id)
            if job is not None and job.state in ENDED:
                finished.add(task)
            else:
                unfinished[job_id] = task
        for task in unfinished.values():
            task.cancel()
        await asyncio.gather(*unfinished.values(), return_exceptions=True)
        for job_id in unfinished:
            await self._tools.store.advance(job_id, {State.RUNNING}, [_queued(1)])
        if finished:
            _, late = await asyncio.wait(finished, timeout=_DRAIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _tick(self) -> float | None:
        """One look at the queue. Returns after how many seconds something is due; None: only when woken."""
        self._wake.clear()
        tickets = await self._tools.store.unfinished()
        if self._stopping:
            return None
        idle = self._idle(tickets)
        self._pauses = {t.job_id: self._pauses[t.job_id] for t in tickets if t.job_id in self._pauses}
        now = self._tools.clock()
        for ticket in idle:
            if ticket.state is State.RUNNING:
                await self._recover(ticket.job_id)
            elif ticket.deadline <= now:
                await self._expire(ticket.job_id)
        queue = in_order(t for t in idle if t.state in IN_QUEUE and t.deadline > now)
        await self._start(queue)
        queue = self._idle(queue)
        await self._announce(queue)
        due = [ticket.deadline - now for ticket in queue]
        ends = [self._pauses[t.job_id].until - time.monotonic() for t in queue if t.job_id in self._pauses]
        due += [end for end in ends if end > 0]
        return max(0.01, min(due)) if due else None

    async def _start(self, queue: list[QueuedJob]) -> None:
        services = self._tools.downstream.needed
        if any(service.serving is None for service in services):
            return
        missing = next((service for service in services if not service.serving), None)
        now = time.monotonic()
        held = {job_id for job_id, pause in self._pauses.items() if pause.until > now}
        free = self._tools.settings.concurrency - len(self._tasks)
        for ticket in choose(queue, held, free):
            if missing is not None:
                await self._wait_for(ticket, missing)
                continue
            job = await self._tools.store.get(ticket.job_id)
            if job is not None and job.state in IN_QUEUE and not self._stopping:
                task = asyncio.create_task(self._work(job), name=f"job {job.job_id}")
                self._tasks[job.job_id] = task
                task.add_done_callback(partial(self._done, job.job_id))

    def _done(self, job_id: str, _: asyncio.Task[None]) -> None:
        del self._tasks[job_id]
        self._wake.set()

    async def _work(self, job: Job) -> None:
        """One attempt and its settlement. Never raises but when it is cancelled."""
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
                        await attempt(self._tools, job, span)
                except RetryableFailure as interrupted:
                    await self._interrupted(job, interrupted)
                except ChorusError as error:
                    await self._fail(job.job_id, error)
                except Exception:
                    log.exception("the attempt failed")
                    await self._fail(job.job_id, _internal(job))
                else:
                    self._pauses.pop(job.job_id, None)
                await self._prune()
            except Exception:
                # The next look at the queue finds the job where it was left.
                log.exception("the attempt could not be settled")

    async def _interrupted(self, job: Job, interrupted: RetryableFailure) -> None:
        log.warning("interrupted", missing=interrupted.service, error=interrupted.cause.message)
        if interrupted.crashed and job.crashes + 1 >= self._tools.settings.max_crashes:
            await self._fail(job.job_id, _too_many_crashes(job.crashes + 1))
            return
        before = self._pauses.get(job.job_id)
        seconds = min(2 * before.seconds, self._tools.settings.retry_seconds) if before else _FIRST_PAUSE
        if interrupted.cause.reason == errors.QUEUE_FULL and interrupted.cause.retry_after:
            seconds = max(seconds, min(interrupted.cause.retry_after, _LONGEST_PAUSE))
        self._pauses[job.job_id] = _Pause(time.monotonic() + seconds, seconds, interrupted.service)
        current = await self._tools.store.get(job.job_id)
        known = before is not None and before.service == interrupted.service
        if current is not None and current.state is State.WAITING and known:
            return
        await self._tools.store.advance(
            job.job_id, UNFINISHED, [_waiting(interrupted.cause)], crashed=interrupted.crashed
        )

    async def _wait_for(self, ticket: QueuedJob, service: Dependency) -> None:
        """The job's turn has come, but a service is away."""
        pause = self._pauses.get(ticket.job_id)
        if ticket.state is State.WAITING and pause is not None and pause.service == service.name:
            return
        self._pauses[ticket.job_id] = _Pause(0.0, _FIRST_PAUSE, service.name)
        await self._tools.store.advance(ticket.job_id, IN_QUEUE, [_waiting(service.missing())])

    async def _recover(self, job_id: str) -> None:
        job = await self._tools.store.get(job_id)
        if job is None or job.state is not State.RUNNING:
            return
        await self._tools.videos.remove([job_id])
        if job.crashes + 1 >= self._tools.settings.max_crashes:
            await self._fail(job_id, _too_many_crashes(job.crashes + 1))
            return
        log.warning("taken up again", generation_id=job_id, attempts=job.generation.attempts)
        await self._tools.store.advance(job_id, {State.RUNNING}, [_queued(1)], crashed=True)
        self._wake.set()

    async def _expire(self, job_id: str) -> None:
        job = await self._tools.store.get(job_id)
        if job is not None:
            await self._fail(job_id, too_late(job))

    async def _fail(self, job_id: str, error: ChorusError) -> None:
        failed = pb.GenerationEvent(failed=pb.FailedEvent(error=errors.to_job_error(error)))
        if await self._tools.store.advance(job_id, UNFINISHED, [failed]) is not None:
            log.warning("failed", generation_id=job_id, error=error.message)

    async def _announce(self, queue: list[QueuedJob]) -> None:
        """Tells the head of the queue where it stands."""
        for position, ticket in enumerate(queue[:_TOLD], 1):
            if ticket.state is State.QUEUED and ticket.announced != position:
                await self._tools.store.advance(ticket.job_id, {State.QUEUED}, [_queued(position)])

    async def _prune(self) -> None:
        """Files first: a crash in between leaves a row that says which files to remove."""
        surplus = await self._tools.store.surplus(self._tools.settings.keep_generations)
        if surplus:
            await self._tools.videos.remove(surplus)
            await self._tools.store.forget(surplus)

    def _idle(self, tickets: Iterable[QueuedJob]) -> list[QueuedJob]:
        return [ticket for ticket in tickets if ticket.job_id not in self._tasks]


def _positions(tickets: Iterable[QueuedJob]) -> dict[str, int]:
    queue = in_order(ticket for ticket in tickets if ticket.state in IN_QUEUE)
    return {ticket.job_id: position for position, ticket in enumerate(queue, 1)}


def _queued(position: int) -> pb.GenerationEvent:
    return pb.GenerationEvent(queued=pb.QueuedEvent(queue_position=position))


def _waiting(cause: ChorusError) -> pb.GenerationEvent:
    return pb.GenerationEvent(waiting=pb.WaitingEvent(cause=errors.to_job_error(cause)))


def _internal(job: Job) -> ChorusError:
    trace_id = job.generation.trace_id
    return ChorusError(
        errors.INTERNAL,
        "an internal fault; the scheduler's log has its cause",
        metadata={"trace_id": trace_id} if trace_id else {},
    )


def _too_many_crashes(crashes: int) -> ChorusError:
    return ChorusError(
        errors.INTERNAL,
        f"given up: a service died {crashes} times while it worked on this generation",
        metadata={"crashes": str(crashes)},
    )
