"""One attempt at a job: prepare → record the plan → denoise."""

from __future__ import annotations

import time

from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import semconv
from chorus_rpc.telemetry import Span

from services.runtime.logs import get_logger
from services.scheduler.dispatch.denoise_runner import DenoiseParameters, DenoiseRunner
from services.scheduler.dispatch.donors_in_flight import DonorsInFlight
from services.scheduler.dispatch.preparation import Preparation
from services.scheduler.dispatch.unfinished_runs import UnfinishedRuns
from services.scheduler.jobs.states import IN_QUEUE
from services.scheduler.jobs.store import Job, JobStore
from services.scheduler.peers.messages import build_denoise_request, truncate_tokens
from services.scheduler.peers.pooled_denoiser import PooledDenoiser

log = get_logger("attempt")


class AttemptRunner:
    """Runs attempts at jobs, each from the queue to the video; holds no state of any job.

    Args:
        unfinished_runs: what interrupted runs have computed.
        donors_in_flight: runs that others may wait for; None if none waits.
    """

    def __init__(
        self,
        store: JobStore,
        preparation: Preparation,
        denoise_runner: DenoiseRunner,
        unfinished_runs: UnfinishedRuns,
        donors_in_flight: DonorsInFlight | None,
    ) -> None:
        self._store = store
        self._donors_in_flight = donors_in_flight
        self._unfinished_runs = unfinished_runs
        self._preparation = preparation
        self._denoise_runner = denoise_runner

    def pause(self, job_id: str) -> None:
        """Requests that the run of a job gives way at its next step; ignored before it has started."""
        self._denoise_runner.pause(job_id)

    async def run(self, job: Job, denoiser: PooledDenoiser, span: Span, *, may_wait: bool = False) -> None:
        """Runs a queued job on a denoiser, and returns when its video is complete, or when it is paused.

        A run that was interrupted before is continued. Returns early when the job has left the expected
        state, for instance because it was cancelled.

        Args:
            may_wait: whether the job may wait for a donor in flight.

        Raises WaitsForDonor if it pays to wait for a donor in flight, RetryableFailure if a service is
        unavailable, ChorusError if the job cannot succeed.
        """
        dequeued = time.monotonic()
        created = job.generation.create_time.ToNanoseconds() / 1e9
        timings = pb.Timings(queued_seconds=max(0.0, time.time() - created))
        earlier = self._unfinished_runs.find(job.job_id)
        if earlier is not None and not self._preparation.still_holds(job, earlier.prepared):
            earlier = None
        prepared = await self._preparation.prepare(job) if earlier is None else earlier.prepared
        in_flight = self._donors_in_flight
        if in_flight is not None and may_wait and earlier is None:
            await in_flight.require_none_better(job, prepared)
        plan, spec = prepared.plan, job.generation.spec
        timings.embed_seconds = prepared.embed_seconds
        timings.lookup_seconds = prepared.lookup_seconds

        span.set_attribute(semconv.TOTAL_STEPS, plan.total_steps)
        span.set_attribute(semconv.REUSE_STEPS, plan.reuse_steps)
        span.set_attribute(semconv.REGION_STEPS, max(0, plan.region_end - plan.reuse_steps))
        if plan.draft_step:
            span.set_attribute(semconv.DRAFT_STEP, plan.draft_step)
        span.set_attribute(semconv.CACHE_DECISION, "hit" if plan.reuse_steps else "miss")
        events = [pb.GenerationEvent(planned=pb.PlannedEvent(plan=plan))]
        events += [pb.GenerationEvent(warning=pb.WarningEvent(warning=each)) for each in prepared.warnings]
        running = await self._store.advance(job.job_id, IN_QUEUE, events, owner=self._store.scheduler_id)
        if running is None:
            return
        log.info(
            "planned",
            reuse_steps=plan.reuse_steps,
            reason=plan.reasons[0].text,
            resumes_after=0 if earlier is None else earlier.steps_run,
        )
        span.set_attribute(semconv.ATTEMPT, running.generation.attempts)
        if earlier is not None:
            request = earlier.request
        else:
            request = build_denoise_request(
                job.job_id,
                spec,
                truncate_tokens(prepared.encoded, prepared.model.max_text_tokens),
                plan,
                prepared.approximation,
                seed_drawn=job.generation.seed_chosen,
                max_resume_point_bytes=self._unfinished_runs.max_point_bytes,
            )
        parameters = DenoiseParameters(running, denoiser, prepared, request, timings, dequeued, earlier)
        if in_flight is not None:
            in_flight.begin(job, prepared)
        try:
            await self._denoise_runner.run(parameters, span)
        finally:
            if in_flight is not None:
                in_flight.end(job.job_id)
