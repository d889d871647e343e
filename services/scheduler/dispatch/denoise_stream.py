"""Runs a job on the denoiser: converts replies to events of the job, and writes the video file."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from functools import partial

from chorus.common.v1 import errors_pb2, latents_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.chunks import BlobAssembler, BlobFault
from chorus_rpc.errors import ChorusError
from chorus_rpc.telemetry import Span

from services.contract.identity import approximate
from services.runtime.logs import get_logger
from services.scheduler.dispatch import throughput
from services.scheduler.dispatch.admissions import PendingAdmissions
from services.scheduler.dispatch.overrides import find_overrides, find_unkept_latents
from services.scheduler.dispatch.retry import classify_failure
from services.scheduler.dispatch.saving import save_video
from services.scheduler.dispatch.throughput import Throughput
from services.scheduler.jobs.passing_faults import PassingFault, wait_out
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import Job, JobStore
from services.scheduler.jobs.video_store import VideoStore
from services.scheduler.peers.denoiser import DenoiserClient

log = get_logger("denoise_stream")

_RUNNING: Collection[State] = frozenset({State.RUNNING})
_SUCCEEDED: Collection[State] = frozenset({State.SUCCEEDED})


class JobNoLongerRunning(Exception):
    """Reports that the job ended during the run: it was cancelled, or its deadline passed."""


class DenoiseStream:
    """Converts the replies of one Denoise call to events of its job. It makes no calls and writes no
    files.

    Args:
        total_steps: steps of the schedule.
        attempt: number of this attempt, from 1.
        decode_seconds: estimated seconds of the decoding, 0 if unknown.
        max_video_bytes: upper bound on the size of the video.

    Attributes:
        began: whether the denoiser has replied at all.
        reuse_steps: K1 as it was run, 0 if the donor could not be used or nothing has started yet.
        fetch_seconds: seconds that the denoiser spent on fetching the donor's data.
        steps: seconds and share of tokens computed, of each step that was run.
        completed: the denoiser's summary once the run is complete.
        video_info: header of the video, once it has arrived.
    """

    def __init__(self, total_steps: int, attempt: int, decode_seconds: float, max_video_bytes: int) -> None:
        self.began = False
        self.reuse_steps = 0
        self.fetch_seconds = 0.0
        self.steps: list[tuple[float, float]] = []
        self.completed: denoiser_pb2.Completed | None = None
        self.video_info: video_pb2.VideoInfo | None = None
        self._total_steps = total_steps
        self._attempt = attempt
        self._decode_seconds = decode_seconds
        self._max_video_bytes = max_video_bytes
        self._video: BlobAssembler | None = None

    def convert(self, reply: denoiser_pb2.DenoiseResponse) -> list[pb.GenerationEvent]:
        """Returns the events that follow from one reply. Raises BlobFault if the video is out of order."""
        self.began = True
        match reply.WhichOneof("event"):
            case "started":
                return self._convert_started(reply.started)
            case "step_completed":
                return [self._convert_step(reply.step_completed)]
            case "video_header":
                self.video_info = reply.video_header
                self._video = BlobAssembler(
                    self.video_info.size_bytes,
                    self.video_info.digest,
                    self._max_video_bytes,
                    "CHORUS_SCHEDULER_MAX_VIDEO_BYTES",
                )
            case "video_chunk":
                if self._video is None:
                    raise BlobFault("a chunk came before the header")
                self._video.add(reply.video_chunk)
            case "completed":
                self.completed = reply.completed
            case "admission":
                return _convert_admission(reply.admission)
            case _:
                pass
        return []

    def finish_video(self) -> tuple[video_pb2.VideoInfo, bytes]:
        """Returns the complete video and releases it. Raises BlobFault unless it matches its header."""
        if self._video is None or self.video_info is None:
            raise BlobFault("the run was reported complete before any video came")
        data = self._video.finish()
        self._video = None
        return self.video_info, data

    def _convert_started(self, started: denoiser_pb2.Started) -> list[pb.GenerationEvent]:
        self.reuse_steps = started.reuse_steps
        self.fetch_seconds = started.fetch_seconds
        event = pb.StartedEvent(
            reuse_steps=started.reuse_steps,
            total_steps=started.total_steps,
            attempt=self._attempt,
            host_adapter=started.host_adapter,
        )
        if started.HasField("donor"):
            event.donor.CopyFrom(started.donor)
        events = [pb.GenerationEvent(started=event)]
        if started.HasField("degraded"):
            log.warning("donor not used", error=started.degraded.message)
            warning = errors_pb2.JobError()
            warning.CopyFrom(started.degraded)
            if "service" not in warning.metadata:
                warning.metadata["service"] = "cache"
            events.append(pb.GenerationEvent(warning=pb.WarningEvent(warning=warning)))
        return events

    def _convert_step(self, step: denoiser_pb2.StepCompleted) -> pb.GenerationEvent:
        self.steps.append((step.seconds, step.computed_share))
        mean_seconds = sum(seconds for seconds, _ in self.steps) / len(self.steps)
        return pb.GenerationEvent(
            step_completed=pb.StepCompletedEvent(
                step=step.step,
                total_steps=self._total_steps,
                seconds=step.seconds,
                eta_seconds=throughput.eta_seconds(
                    self._total_steps - step.step.index, mean_seconds, self._decode_seconds
                ),
                computed_share=step.computed_share,
                active_tokens=step.active_tokens,
                token_grid=step.token_grid,
                backend=step.backend,
                fallback=step.fallback,
                draft=step.draft,
            )
        )


@dataclass(frozen=True)
class DenoiseParameters:
    """Parameters of one run on the denoiser.

    Attributes:
        job: a job in state RUNNING.
        identity: identity of the latents that the run computes without a donor.
        timings: timings known before the run; completed by it.
        dequeued: monotonic seconds at which the job left the queue.
    """

    job: Job
    model: denoiser_pb2.ModelInfo
    identity: latents_pb2.LatentIdentity
    request: denoiser_pb2.DenoiseRequest
    timings: pb.Timings
    dequeued: float


class DenoiseRunner:
    """Runs plans on the denoiser and records each run in its job.

    Args:
        admissions: follows the admission of a finished run's latents.
        max_video_bytes: upper bound on the size of a video.
    """

    def __init__(
        self,
        denoiser: DenoiserClient,
        store: JobStore,
        videos: VideoStore,
        throughput: Throughput,
        admissions: PendingAdmissions,
        *,
        max_video_bytes: int,
    ) -> None:
        self._denoiser = denoiser
        self._store = store
        self._videos = videos
        self._throughput = throughput
        self._admissions = admissions
        self._max_video_bytes = max_video_bytes

    async def run(self, parameters: DenoiseParameters, generation_span: Span) -> None:
        """Follows one Denoise call until the job has ended; the admission of its latents is followed later.

        Args:
            generation_span: span of the attempt; records whether the donor was used.

        Raises as `AttemptRunner.run` does.
        """
        plan = parameters.request.plan
        stream = DenoiseStream(
            plan.total_steps,
            parameters.job.generation.attempts,
            self._throughput.decode_seconds(parameters.job.generation.spec),
            self._max_video_bytes,
        )
        attributes: dict[str, str | bool | int | float] = {semconv.GEN_AI_MODEL: parameters.model.model_id}
        if plan.HasField("donor"):
            attributes[semconv.ENTRY_ID] = plan.donor.entry_id
            attributes[semconv.DONOR_SCORE] = plan.donor.score
        try:
            with telemetry.span(semconv.SPAN_DISPATCH, attributes, link=plan.donor.traceparent):
                await self._follow(parameters, stream)
        finally:
            # The donor may have been lost since the plan was made.
            generation_span.set_attribute(semconv.CACHE_DECISION, "hit" if stream.reuse_steps else "miss")

    async def _follow(self, parameters: DenoiseParameters, stream: DenoiseStream) -> None:
        try:
            async with AsyncExitStack() as resources:
                replies = await resources.enter_async_context(
                    aclosing(self._denoiser.denoise(parameters.request, parameters.job.caller))
                )
                async for reply in replies:
                    events = stream.convert(reply)
                    events += find_overrides(
                        parameters.job.generation, parameters.model, stream.reuse_steps, reply
                    )
                    if events:
                        await self._advance(parameters.job, events)
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
            raise classify_failure(error, "denoiser", stream.began) from error

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
        timings.fetch_seconds = stream.fetch_seconds
        timings.denoise_seconds = completed.denoise_seconds
        timings.decode_seconds = completed.decode_seconds
        timings.total_seconds = time.monotonic() - parameters.dequeued
        full_step = throughput.full_step(stream.steps)
        if full_step is not None:
            self._throughput.record(spec, full_step, completed.decode_seconds, timings.total_seconds)
        succeeded = pb.SucceededEvent(
            video=info,
            steps_run=completed.steps_run,
            timings=timings,
            seconds_saved=throughput.seconds_saved(
                parameters.request.plan.total_steps if stream.reuse_steps else 0,
                completed.denoise_seconds,
                stream.fetch_seconds,
                full_step or self._throughput.seconds_per_step(spec, parameters.model),
            ),
        )
        try:
            await self._advance(job, [pb.GenerationEvent(succeeded=succeeded)])
        except JobNoLongerRunning:
            await self._videos.discard(job.job_id, job.generation.attempts)
            raise
        log.info("succeeded", steps_run=completed.steps_run, seconds=round(timings.total_seconds, 3))

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
                    events += _convert_admission(reply.admission)
                    events += find_unkept_latents(job.generation, reply.admission)
                    known = True
            except ChorusError as error:
                log.warning("stream broke after the video was complete", error=error.message)
                if not known:
                    events.append(_make_unknown_admission_warning())
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
    return approximate(parameters.identity, request.admission.approximation if reused else None)


def _convert_admission(admission: denoiser_pb2.Admission) -> list[pb.GenerationEvent]:
    return _make_admission_warning(admission.error) if admission.HasField("error") else []


def _make_admission_warning(error: errors_pb2.JobError) -> list[pb.GenerationEvent]:
    """Returns the warning that the latents were not stored."""
    log.warning("latents not admitted to the cache", error=error.message)
    warning = errors_pb2.JobError()
    warning.CopyFrom(error)
    warning.message = f"the latents were not stored for later requests: {error.message}"
    if "service" not in warning.metadata:
        warning.metadata["service"] = "cache"
    return [pb.GenerationEvent(warning=pb.WarningEvent(warning=warning))]


def _make_unknown_admission_warning() -> pb.GenerationEvent:
    """Returns the warning of a stream that ended early, whether by its time limit or with the denoiser."""
    cause = errors.unavailable("denoiser", "its stream ended before the outcome of the admission")
    warning = errors.to_job_error(cause)
    warning.message = f"it is not known whether the latents were stored for later requests: {cause.message}"
    return pb.GenerationEvent(warning=pb.WarningEvent(warning=warning))
