"""Plans waiting jobs ahead of their start, so that the queue knows their expected work.

A plan that is made ahead settles only the job's place in the queue: when the job starts it is planned again,
because the cache may hold better donors by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog
from chorus_rpc import semconv, telemetry
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.scheduler.dispatch.preparation import Preparation
from services.scheduler.dispatch.retry import RetryableFailure
from services.scheduler.dispatch.throughput import Throughput, expected_seconds
from services.scheduler.jobs.passing_faults import PassingFault
from services.scheduler.jobs.store import Job, JobStore, StoreError
from services.scheduler.peers.health import Peer

log = get_logger("forecast")

# Pause after a fault of the job store, in seconds.
_FAULT_PAUSE = 1.0


class Forecast:
    """Estimates jobs one after the other, the next to start first.

    Args:
        required_peers: health of those services without which no job can be planned.
    """

    def __init__(
        self,
        store: JobStore,
        preparation: Preparation,
        throughput: Throughput,
        required_peers: Sequence[Peer],
    ) -> None:
        self._store = store
        self._preparation = preparation
        self._throughput = throughput
        self._required_peers = required_peers
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Requests a look at the queue, after a job was accepted."""
        self._wake.set()

    async def run(self, on_estimate: Callable[[], None]) -> None:
        """Runs until it is cancelled. A passing fault is logged and retried; StoreError is raised.

        Args:
            on_estimate: called after each estimate: the order of the queue may have changed.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while await self._estimate_next():
                    on_estimate()
            except PassingFault as fault:
                log.warning("queue not estimated", error=fault.message)
                await asyncio.sleep(_FAULT_PAUSE)
                self._wake.set()

    async def _estimate_next(self) -> bool:
        """Estimates the first waiting job that has no estimate. Returns whether there was one.

        A job that waits alone needs none.
        """
        if not all(peer.serving for peer in self._required_peers) or len(await self._store.queue(2)) < 2:
            return False
        job = await self._store.next_unestimated()
        if job is None:
            return False
        with structlog.contextvars.bound_contextvars(generation_id=job.job_id):
            await self._store.estimate(job.job_id, await self._expect_work(job))
        return True

    async def _expect_work(self, job: Job) -> float | None:
        """Returns the expected seconds of a job's run; None if it cannot be planned now."""
        spec = job.generation.spec
        try:
            with telemetry.span(
                semconv.SPAN_FORECAST,
                {semconv.GENERATION_ID: job.job_id, semconv.GEN_AI_MODEL: spec.model_id},
                parent=job.traceparent or None,
            ):
                prepared = await self._preparation.prepare(job)
        except (PassingFault, StoreError):
            raise
        except RetryableFailure as failure:
            log.info("not planned ahead", peer=failure.service, error=failure.cause.message)
        except ChorusError as error:
            log.info("not planned ahead", error=error.message)
        except Exception:
            # The attempt at this job will fail in the same way, and report it; other jobs go on.
            log.exception("not planned ahead")
        else:
            step = self._throughput.seconds_per_step(spec, prepared.model)
            return expected_seconds(prepared.plan, step, self._throughput.decode_seconds(spec))
        return None
