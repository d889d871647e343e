"""One run on the denoiser: its stream of events becomes the job's events, its chunks the video file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from chorus.common.v1 import errors_pb2, plan_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.channels import calling
from chorus_rpc.chunks import BlobAssembler, BlobFault
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.scheduler.dispatch import throughput
from services.scheduler.dispatch.retry import classify_failure
from services.scheduler.dispatch.tools import Tools, too_late
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import Job

log = get_logger("run")

_RUNNING: Collection[State] = frozenset({State.RUNNING})


class JobNoLongerRunning(Exception):
    """The job is no longer running: it was cancelled, or its deadline passed."""


class DenoiseStream:
    """Follows one Denoise call of a job that is RUNNING.

    Args:
        timings: what is known before the run; filled in here.
        taken: monotonic seconds when the job was taken off the queue.

    `first_step`: the first that the denoiser computes; 0 before it said so.
    """

    def __init__(
        self,
        tools: Tools,
        job: Job,
        model: denoiser_pb2.ModelInfo,
        plan: plan_pb2.Plan,
        timings: pb.Timings,
        taken: float,
    ) -> None:
        self._tools = tools
        self._job = job
        self._model = model
        self._plan = plan
        self._timings = timings
        self._taken = taken
        self.first_step = 0
        # Of each step that was run: seconds, and the share of tokens computed.
        self._steps: list[tuple[float, float]] = []
        self._info: video_pb2.VideoInfo | None = None
        self._video: BlobAssembler | None = None
        self._began = False
        self._succeeded = False

    async def follow(self, request: denoiser_pb2.DenoiseRequest) -> None:
        """Returns when the stream has ended, or at once when the job is no longer running.

        Raises as `attempt` does.
        """
        attributes: dict[str, str | bool | int | float] = {semconv.GEN_AI_MODEL: self._model.model_id}
        if self._plan.HasField("donor"):
            attributes[semconv.ENTRY_ID] = self._plan.donor.entry_id
            attributes[semconv.DONOR_SCORE] = self._plan.donor.score
        with telemetry.span(semconv.SPAN_DISPATCH, attributes, link=self._plan.donor.traceparent):
            try:
                await self._follow(request)
            except JobNoLongerRunning:
                log.info("left: the job is no longer running")
            except BlobFault as error:
                raise ChorusError(
                    errors.INTERNAL,
                    f"the denoiser sent a broken video: {error}",
                    metadata={"service": "denoiser"},
                ) from error
            except ChorusError as error:
                if self._succeeded:
                    log.warning("the end of the stream was lost", error=error.message)
                    return
                if error.reason == errors.DEADLINE_EXCEEDED:
                    raise too_late(self._job) from error
                raise classify_failure(error, "denoiser", self._began) from error

    async def _follow(self, request: denoiser_pb2.DenoiseRequest) -> None:
        left = self._tools.seconds_left(self._job)
        call = self._tools.downstream.denoiser.Denoise(
            request, timeout=left, metadata=self._tools.downstream.metadata
        )
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as limit:
                with calling("denoiser"):
                    async for reply in call:
                        await self._take(reply)
                        if self._succeeded and limit.when() is None:
                            limit.reschedule(loop.time() + self._tools.settings.admission_seconds)
        except TimeoutError:
            log.warning("the latents were not admitted in time")
        finally:
            call.cancel()
        if not self._succeeded:
            raise errors.unavailable("denoiser", "its stream ended before the video was complete")

    async def _take(self, reply: denoiser_pb2.DenoiseResponse) -> None:
        self._began = True
        match reply.WhichOneof("event"):
            case "started":
                await self._started(reply.started)
            case "step_completed":
                await self._step_completed(reply.step_completed)
            case "video_header":
                self._info = reply.video_header
                self._video = BlobAssembler(
                    self._info.size_bytes, self._info.digest, self._tools.settings.max_video_bytes
                )
            case "video_chunk":
                if self._video is None:
                    raise BlobFault("a chunk came before the header")
                self._video.add(reply.video_chunk)
            case "completed":
                await self._completed(reply.completed)
            case "admission" if reply.admission.HasField("error"):
                log.warning("not admitted to the cache", error=reply.admission.error.message)
            case _:
                pass

    async def _started(self, started: denoiser_pb2.Started) -> None:
        self.first_step = started.reuse_steps
        self._timings.fetch_seconds = started.fetch_seconds
        event = pb.StartedEvent(
            reuse_steps=started.reuse_steps,
            total_steps=started.total_steps,
            attempt=self._job.generation.attempts,
        )
        if started.HasField("donor"):
            event.donor.CopyFrom(started.donor)
        events = [pb.GenerationEvent(started=event)]
        if started.HasField("degraded"):
            log.warning("the donor could not be used", error=started.degraded.message)
            warning = errors_pb2.JobError()
            warning.CopyFrom(started.degraded)
            if "service" not in warning.metadata:
                warning.metadata["service"] = "cache"
            events.append(pb.GenerationEvent(warning=pb.WarningEvent(warning=warning)))
        await self._advance(*events)

    async def _step_completed(self, step: denoiser_pb2.StepCompleted) -> None:
        self._steps.append((step.seconds, step.computed_share))
        total = self._plan.total_steps
        eta = throughput.eta_seconds(
            total - step.step.index,
            sum(seconds for seconds, _ in self._steps) / len(self._steps),
            self._tools.pace.decode_seconds(self._job.generation.spec),
        )
        await self._advance(
            pb.GenerationEvent(
                step_completed=pb.StepCompletedEvent(
                    step=step.step,
                    total_steps=total,
                    seconds=step.seconds,
                    eta_seconds=eta,
                    computed_share=step.computed_share,
                    active_tokens=step.active_tokens,
                    token_grid=step.token_grid,
                    backend=step.backend,
                    fallback=step.fallback,
                )
            )
        )

    async def _completed(self, completed: denoiser_pb2.Completed) -> None:
        if self._video is None or self._info is None:
            raise BlobFault("no video came before the run was called complete")
        data = self._video.finish()
        self._video = None
        try:
            await self._tools.videos.save(self._job.job_id, data)
        except OSError as error:
            raise ChorusError(errors.INTERNAL, f"the video could not be stored: {error.strerror}") from error
        self._timings.denoise_seconds = completed.denoise_seconds
        self._timings.decode_seconds = completed.decode_seconds
        self._timings.total_seconds = time.monotonic() - self._taken
        spec = self._job.generation.spec
        full_step = throughput.full_step(self._steps)
        if full_step is not None:
            self._tools.pace.note(spec, full_step, completed.decode_seconds, self._timings.total_seconds)
        known_step = full_step or self._tools.pace.seconds_per_step(spec, self._model)
        succeeded = pb.SucceededEvent(
            video=self._info,
            steps_run=completed.steps_run,
            timings=self._timings,
            seconds_saved=throughput.seconds_saved(
                self._plan.total_steps if self.first_step else 0,
                completed.denoise_seconds,
                self._timings.fetch_seconds,
                known_step,
            ),
        )
        try:
            await self._advance(pb.GenerationEvent(succeeded=succeeded))
        except JobNoLongerRunning:
            await self._tools.videos.remove([self._job.job_id])
            raise
        self._succeeded = True
        log.info("succeeded", steps_run=completed.steps_run, seconds=round(self._timings.total_seconds, 3))

    async def _advance(self, *events: pb.GenerationEvent) -> None:
        """Raises JobNoLongerRunning when somebody else ended the job."""
        if await self._tools.store.advance(self._job.job_id, _RUNNING, events) is None:
            raise JobNoLongerRunning
