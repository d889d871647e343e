"""Runs a job on the denoiser, records it in the job, and writes the video file."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from functools import partial

from chorus.common.v1 import latents_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.chunks import BlobFault
from chorus_rpc.errors import ChorusError
from chorus_rpc.telemetry import Span

from services.contract.identity import approximate
from services.runtime.logs import get_logger
from services.scheduler.dispatch import throughput
from services.scheduler.dispatch.admission_events import convert_admission, make_unknown_admission_warning
from services.scheduler.dispatch.admissions import PendingAdmissions
from services.scheduler.dispatch.denoise_stream import DenoiseStream
from services.scheduler.dispatch.overrides import find_overrides, find_unkept_latents
from services.scheduler.dispatch.preparation import Prepared
from services.scheduler.dispatch.retry import RetryableFailure, classify_failure
from services.scheduler.dispatch.saving import save_video
from services.scheduler.dispatch.throughput import Throughput
from services.scheduler.dispatch.unfinished_runs import UnfinishedRun, UnfinishedRuns
from services.scheduler.jobs.passing_faults import PassingFault, wait_out
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import Job, JobStore
from services.scheduler.jobs.video_store import VideoStore
from services.scheduler.peers.pooled_denoiser import PooledDenoiser

log = get_logger("denoise_runner")

_RUNNING: Collection[State] = frozenset({State.RUNNING})
_SUCCEEDED: Collection[State] = frozenset({State.SUCCEEDED})


class JobNoLongerRunning(Exception):
    """Reports that the job ended during the run: it was cancelled, or its deadline passed."""


@dataclass(frozen=True)
class DenoiseParameters:
    """Parameters of one run on the denoiser.

    Attributes:
        job: a job in state RUNNING.
        denoiser: runs it.
        timings: timings known before the run; completed by it.
        dequeued: monotonic seconds at which the job left the queue.
        earlier: the interrupted run that this one continues; None if it starts from its beginning.
    """

    job: Job
    denoiser: PooledDenoiser
    prepared: Prepared
    request: denoiser_pb2.DenoiseRequest
    timings: pb.Timings
    dequeued: float
    earlier: UnfinishedRun | None = None


class _Running:
    """A run under way.

    Attributes:
        began: set by the first reply of the denoiser.
        pause: set to request its pause.
    """

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.pause = asyncio.Event()


class DenoiseRunner:
    """Runs plans on the denoiser and records each run in its job.

    Args:
        admissions: follows the admission of a finished run's latents.
        unfinished_runs: keeps what interrupted runs have computed.
        max_video_bytes: upper bound on the size of a video.
    """

    def __init__(
        self,
        store: JobStore,
        videos: VideoStore,
        throughput: Throughput,
        admissions: PendingAdmissions,
        unfinished_runs: UnfinishedRuns,
        *,
        max_video_bytes: int,
    ) -> None:
        self._store = store
        self._videos = videos
        self._throughput = throughput
        self._admissions = admissions
        self._unfinished_runs = unfinished_runs
        self._max_video_bytes = max_video_bytes
        self._running: dict[str, _Running] = {}  # by job id

    def pause(self, job_id: str) -> None:
        """Requests that a run gives way at its next step; ignored if the job does not run."""
        if job_id in self._running:
            self._running[job_id].pause.set()

    async def run(self, parameters: DenoiseParameters, generation_span: Span) -> None:
        """Follows one Denoise call until the job has ended or is paused.

        The admission of its latents is followed later.

        Args:
            generation_span: span of the attempt; records whether the donor was used.

        Raises as `AttemptRunner.run` does.
        """
        job_id, plan, earlier = parameters.job.job_id, parameters.request.plan, parameters.earlier
        stream = DenoiseStream(
            plan.total_steps,
            parameters.job.generation.attempts,
            self._throughput.decode_seconds(parameters.job.generation.spec),
            self._max_video_bytes,
            earlier.steps_run if earlier else 0,
            parameters.denoiser.address,
            parameters.job.generation.spec.step_previews,
        )
        attributes: dict[str, str | bool | int | float] = {
            semconv.GEN_AI_MODEL: parameters.prepared.model.model_id,
            semconv.DENOISER_ADDRESS: parameters.denoiser.address,
        }
        if plan.HasField("donor"):
            attributes[semconv.ENTRY_ID] = plan.donor.entry_id
            attributes[semconv.DONOR_SCORE] = plan.donor.score
        running = self._running[job_id] = _Running()
        pausing = asyncio.create_task(_pause_when_requested(parameters, running), name="pause")
        try:
            with telemetry.span(semconv.SPAN_DISPATCH, attributes, link=plan.donor.traceparent):
                await self._follow(parameters, stream, running.began)
        finally:
            del self._running[job_id]
            pausing.cancel()
            # The donor may have been lost since the plan was made.
            generation_span.set_attribute(semconv.CACHE_DECISION, "hit" if stream.reuse_steps else "miss")

    async def _follow(
        self, parameters: DenoiseParameters, stream: DenoiseStream, began: asyncio.Event
    ) -> None:
        try:
            async with AsyncExitStack() as resources:
                replies = await resources.enter_async_context(
                    aclosing(parameters.denoiser.denoise(parameters.request, parameters.job.caller))
                )
                async for reply in replies:
                    events = stream.convert(reply)
                    began.set()
                    events += find_overrides(
                        parameters.job.generation, parameters.prepared.model, stream.reuse_steps, reply
                    )
                    if events:
                        await self._advance(parameters.job, events)
                    if reply.step_completed.resume_point:
                        self._keep(parameters, stream)
                    if stream.paused:
                        await self._advance(parameters.job, [pb.GenerationEvent(paused=pb.PausedEvent())])
                        log.info("paused", steps_run=len(stream.steps))
                        return
                    if stream.completed is not None:
                        await self._complete(parameters, stream, stream.completed)
                        self._admissions.follow(
                            parameters.job.tenant,
                            _find_admitted(parameters, stream),
                            (parameters.job.generation.spec.prompt, parameters.request.seed),
                            self._follow_admission(parameters.job, replies, resources.pop_all()),
                        )
                        return
            raise errors.unavailable("denoiser", "its stream ended before the video was complete")
        except JobNoLongerRunning:
            log.info("run stopped: the job is no longer running")
        except BlobFault as error:
            raise ChorusError(
                errors.INTERNAL,
                f"the video that the denoiser sent is rejected: {error}",
                metadata={"service": "denoiser"},
            ) from error
        except ChorusError as error:
            if any(violation.field == "resume_point" for violation in error.violations):
                # The denoiser serves other weights than before.
                self._unfinished_runs.discard(parameters.job.job_id)
                changed = errors.unavailable("denoiser", f"it cannot continue the run: {error.message}")
                raise RetryableFailure("denoiser", changed) from error
            raise classify_failure(error, "denoiser", stream.began) from error

    def _keep(self, parameters: DenoiseParameters, stream: DenoiseStream) -> None:
        """Keeps what the run has computed, for another attempt."""
        request = denoiser_pb2.DenoiseRequest()
        request.CopyFrom(parameters.request)
        request.resume_point = stream.resume_point
        earlier = parameters.earlier if stream.resumed else None
        run = UnfinishedRun(
            parameters.prepared,
            request,
            steps_run=len(stream.steps) + (earlier.steps_run if earlier else 0),
            denoise_seconds=sum(seconds for seconds, _ in stream.steps)
            + (earlier.denoise_seconds if earlier else 0.0),
            fetch_seconds=stream.fetch_seconds + (earlier.fetch_seconds if earlier else 0.0),
        )
        self._unfinished_runs.keep(parameters.job.job_id, run)

    async def _complete(
        self, parameters: DenoiseParameters, stream: DenoiseStream, completed: denoiser_pb2.Completed
    ) -> None:
        """Saves the video and ends the job. If the job has ended already, keeps no video.

        Raises JobNoLongerRunning in that case.
        """
        job, timings, spec = parameters.job, parameters.timings, parameters.job.generation.spec
        info, data = stream.finish_video()
        info = await save_video(
            self._videos, job, info, data, completed.thumbnail, lambda fault: self._warn(job, fault)
        )
        steps_run, denoise_seconds = completed.steps_run, completed.denoise_seconds
        fetch_seconds = stream.fetch_seconds
        if parameters.earlier is not None and stream.resumed:
            steps_run += parameters.earlier.steps_run
            denoise_seconds += parameters.earlier.denoise_seconds
            fetch_seconds += parameters.earlier.fetch_seconds
        timings.fetch_seconds = fetch_seconds
        timings.denoise_seconds = denoise_seconds
        timings.decode_seconds = completed.decode_seconds
        timings.total_seconds = time.monotonic() - parameters.dequeued
        full_step = throughput.full_step(stream.steps)
        if full_step is not None:
            self._throughput.record(spec, full_step, completed.decode_seconds, timings.total_seconds)
        succeeded = pb.SucceededEvent(
            video=info,
            steps_run=steps_run,
            timings=timings,
            seconds_saved=throughput.seconds_saved(
                parameters.request.plan.total_steps if stream.reuse_steps else 0,
                denoise_seconds,
                fetch_seconds,
                full_step or self._throughput.seconds_per_step(spec, parameters.prepared.model),
            ),
        )
        try:
            await self._advance(job, [pb.GenerationEvent(succeeded=succeeded)])
        except JobNoLongerRunning:
            await self._videos.discard(job.job_id, job.generation.attempts)
            raise
        log.info("succeeded", steps_run=steps_run, seconds=round(timings.total_seconds, 3))

    async def _advance(self, job: Job, events: Sequence[pb.GenerationEvent]) -> None:
        """Records events. Raises JobNoLongerRunning if the job has been ended elsewhere.

        While the store cannot be written, the replies of the denoiser wait in the stream.
        """
        record = partial(
            self._store.advance,
            job.job_id,
            _RUNNING,
            events,
            owner=self._store.scheduler_id,
            change=secrets.token_hex(8),  # one change, however often it is repeated
        )
        recorded = await wait_out(record, job.deadline)
        if recorded is None:
            raise JobNoLongerRunning

    async def _warn(self, job: Job, fault: PassingFault) -> None:
        """Adds a warning to a running job, unless the store cannot be written either."""
        warning = pb.WarningEvent(warning=errors.to_job_error(fault))
        with suppress(PassingFault):
            await self._store.advance(
                job.job_id,
                _RUNNING,
                [pb.GenerationEvent(warning=warning)],
                owner=self._store.scheduler_id,
            )

    async def _follow_admission(
        self, job: Job, replies: AsyncGenerator[denoiser_pb2.DenoiseResponse, None], stream: AsyncExitStack
    ) -> None:
        """Reads the rest of a stream, after the video was complete; a refused admission becomes a warning.

        Args:
            stream: closes `replies`.
        """
        events: list[pb.GenerationEvent] = []
        known = False
        async with stream:
            try:
                async for reply in replies:
                    events += convert_admission(reply.admission)
                    events += find_unkept_latents(job.generation, reply.admission)
                    known = True
            except ChorusError as error:
                log.warning("stream broke after the video was complete", error=error.message)
                if not known:
                    events.append(make_unknown_admission_warning())
        if events:
            change = secrets.token_hex(8)
            record = partial(self._store.advance, job.job_id, _SUCCEEDED, events, change=change)
            await wait_out(record, job.deadline)


def _find_admitted(parameters: DenoiseParameters, stream: DenoiseStream) -> latents_pb2.LatentIdentity | None:
    """Returns the identity under which a run's latents are admitted; None if nothing is admitted."""
    request = parameters.request
    if not request.HasField("admission") or stream.reuse_steps == request.plan.total_steps:
        return None
    reused = stream.reuse_steps > 0 and request.admission.HasField("approximation")
    return approximate(parameters.prepared.identity, request.admission.approximation if reused else None)


async def _pause_when_requested(parameters: DenoiseParameters, running: _Running) -> None:
    """Pauses a run once it is requested. A run that cannot be paused goes on."""
    await running.pause.wait()
    await running.began.wait()  # before, the denoiser does not know the run
    job = parameters.job
    try:
        await parameters.denoiser.pause(job.job_id, job.caller)
    except ChorusError as error:
        log.info("not paused", generation_id=job.job_id, error=error.message)
