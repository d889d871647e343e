"""DenoiserService: fetches the donor, runs the plan, streams the events and admits the result."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any

import grpc.aio
from chorus.common.v1 import errors_pb2, latents_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.chunks import chunks, sha256
from chorus_rpc.errors import ChorusError
from chorus_rpc.limits import MAX_ID_CHARACTERS
from chorus_rpc.tenancy import read_tenant

from services.denoiser import metrics
from services.denoiser.admissions import Admissions
from services.denoiser.codec.mp4 import MEDIA_TYPE
from services.denoiser.codec.thumbnail import THUMBNAIL_MEDIA_TYPE, Thumbnail
from services.denoiser.denoise import Result, Video, denoise
from services.denoiser.device_thread import DeviceThread
from services.denoiser.latent_cache import DonorData, LatentCache
from services.denoiser.model_registry import ModelRegistry
from services.denoiser.request import DenoiseJob, parse_request
from services.denoiser.reuse.region_masks import pack_mask
from services.denoiser.reuse.resume_point import estimate_bytes, pack_resume_point
from services.denoiser.reuse.stages import Step
from services.runtime.logs import get_logger

log = get_logger("denoiser")

# Upper bound on the reason for a fallback, or for a missing preview, in a response; the message of an engine
# builder may be long.
MAX_FALLBACK_CHARACTERS = 500

DenoiseContext = grpc.aio.ServicerContext[denoiser_pb2.DenoiseRequest, denoiser_pb2.DenoiseResponse]


@dataclass(frozen=True)
class _Fetched:
    """Outcome of fetching a job's donor.

    Attributes:
        donor: Data of the donor; None means that the run starts from noise.
        degraded: Error that made the donor unusable.
        seconds: Time that fetching took.
    """

    donor: DonorData | None = None
    degraded: errors_pb2.JobError | None = None
    seconds: float = 0.0


class DenoiserServicer(denoiser_pb2_grpc.DenoiserServiceServicer):
    """Serves the models of one registry on one device thread; closes neither.

    Args:
        run_seconds: Upper bound on the duration of a run, in seconds.
        max_message_bytes: Upper bound on a message in bytes; larger resume points are not sent.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        device_thread: DeviceThread,
        latent_cache: LatentCache,
        admissions: Admissions,
        run_seconds: float,
        max_message_bytes: int,
    ) -> None:
        self._registry = registry
        self._device_thread = device_thread
        self._latent_cache = latent_cache
        self._admissions = admissions
        self._run_seconds = run_seconds
        self._max_message_bytes = max_message_bytes
        # Runs that can be paused: an event that requests it, by tenant and generation id.
        self._pausable: dict[tuple[str, str], Event] = {}

    async def Denoise(
        self, request: denoiser_pb2.DenoiseRequest, context: DenoiseContext
    ) -> AsyncIterator[denoiser_pb2.DenoiseResponse]:
        tenant = read_tenant(context.invocation_metadata())
        job = parse_request(request, self._registry.models)
        seconds, late = _limit_run(context.time_remaining(), self._run_seconds)
        deadline = time.monotonic() + seconds
        release_place = self._device_thread.reserve_place()
        _call_when_ended(context, release_place)
        paused = self._register_run(job, tenant, request.ByteSize(), context)
        fetched = await self._fetch_donor(job, tenant)
        run = self._device_thread.submit(
            denoise(
                self._registry.predictors[request.model_id],
                job,
                fetched.donor,
                keep=job.admission is not None,
                parent=telemetry.traceparent(),
                paused=paused,
            ),
            deadline,
            late,
        )
        _call_when_ended(context, run.cancel)
        with telemetry.span(semconv.SPAN_QUEUE):
            await run.wait_until_started()
        yield denoiser_pb2.DenoiseResponse(started=_to_started(job, fetched))
        metrics.record_reused_steps(request.model_id, job.reuse_steps if fetched.donor else 0)
        finished = False
        async for event in run.events():
            if isinstance(event, Step):
                metrics.record_step(request.model_id, event)
                completed = _to_step_completed(event, job)
                if event.resume_point is not None:
                    completed.resume_point = await asyncio.to_thread(
                        pack_resume_point, event.resume_point, job.run_digest
                    )
                yield denoiser_pb2.DenoiseResponse(step_completed=completed)
            else:
                finished = True
                release_place()  # the device is free: neither the caller nor the cache delays the next run
                # Begun first: a similar request may come as soon as the video is complete.
                admission = self._admissions.start(job, tenant, event) if job.admission is not None else None
                for response in _to_video_responses(event.video):
                    yield response
                refused = admission is not None and _is_refused(admission)
                if admission is not None and refused:  # reported before the end of the job
                    yield denoiser_pb2.DenoiseResponse(admission=admission.result())
                yield denoiser_pb2.DenoiseResponse(completed=_to_completed(event))
                log.info("denoised", generation_id=job.generation_id, steps_run=event.steps_run)
                if admission is not None and not refused:
                    yield denoiser_pb2.DenoiseResponse(admission=await asyncio.shield(admission))
        if not finished:
            release_place()
            yield denoiser_pb2.DenoiseResponse(paused=denoiser_pb2.Paused())

    async def PauseRun(
        self,
        request: denoiser_pb2.PauseRunRequest,
        context: grpc.aio.ServicerContext[denoiser_pb2.PauseRunRequest, denoiser_pb2.PauseRunResponse],
    ) -> denoiser_pb2.PauseRunResponse:
        tenant = read_tenant(context.invocation_metadata())
        paused = self._pausable.get((tenant, request.generation_id))
        if paused is None:
            raise errors.not_found("run that can be paused", request.generation_id[:MAX_ID_CHARACTERS])
        paused.set()
        return denoiser_pb2.PauseRunResponse()

    async def DescribeModels(
        self,
        request: denoiser_pb2.DescribeModelsRequest,
        context: grpc.aio.ServicerContext[
            denoiser_pb2.DescribeModelsRequest, denoiser_pb2.DescribeModelsResponse
        ],
    ) -> denoiser_pb2.DescribeModelsResponse:
        return denoiser_pb2.DescribeModelsResponse(models=self._registry.describe())

    async def Warm(
        self,
        request: denoiser_pb2.WarmRequest,
        context: grpc.aio.ServicerContext[denoiser_pb2.WarmRequest, denoiser_pb2.WarmResponse],
    ) -> denoiser_pb2.WarmResponse:
        _call_when_ended(context, self._device_thread.reserve_place())
        return denoiser_pb2.WarmResponse(model=await self._registry.warm(request.model_id))

    def _register_run(
        self, job: DenoiseJob, tenant: str, request_bytes: int, context: DenoiseContext
    ) -> Event | None:
        """Returns the event that pauses a run, until its call ends; None if it sends no resume points."""
        if not job.max_resume_point_bytes:
            return None
        point_bytes = estimate_bytes(job.latent_shape, math.prod(job.token_grid))
        without_point = request_bytes - (point_bytes if job.resume else 0)
        limit = min(job.max_resume_point_bytes, self._max_message_bytes - without_point)
        if point_bytes > limit:
            log.info(
                "no resume points: too large for CHORUS_DENOISER_MAX_MESSAGE_BYTES or the caller",
                generation_id=job.generation_id,
                bytes=point_bytes,
                limit=limit,
            )
            return None
        key, paused = (tenant, job.generation_id), Event()
        self._pausable[key] = paused

        def forget() -> None:
            # Another call for the generation may have taken the place.
            if self._pausable.get(key) is paused:
                del self._pausable[key]

        _call_when_ended(context, forget)
        return paused

    async def _fetch_donor(self, job: DenoiseJob, tenant: str) -> _Fetched:
        """Fetches the donor's data; if that fails, the job is computed in full."""
        if job.donor is None:
            return _Fetched()
        if not job.needs_donor:
            return _Fetched(DonorData({}, None))
        begin = time.perf_counter()
        try:
            donor = await self._latent_cache.fetch(job, tenant)
        except ChorusError as error:
            log.warning("donor not usable", generation_id=job.generation_id, reason=error.message)
            return _Fetched(degraded=errors.to_job_error(error), seconds=time.perf_counter() - begin)
        return _Fetched(donor, seconds=time.perf_counter() - begin)


def _limit_run(remaining: float | None, run_seconds: float) -> tuple[float, ChorusError]:
    """Returns the seconds that a run may take, and the error that names this limit.

    Args:
        remaining: Seconds until the caller's deadline; None without one.
    """
    if remaining is not None and remaining <= run_seconds:
        return remaining, ChorusError(errors.DEADLINE_EXCEEDED, "the deadline passed before the run was done")
    return run_seconds, errors.time_limit_exceeded(
        "CHORUS_DENOISER_RUN_SECONDS",
        f"the run, with its wait for the device, took longer than {run_seconds:g} s",
    )


def _is_refused(admission: asyncio.Future[denoiser_pb2.Admission]) -> bool:
    """Returns whether an admission is known to have failed."""
    return admission.done() and not admission.cancelled() and admission.result().HasField("error")


def _call_when_ended(context: Any, action: Callable[[], None]) -> None:
    """Calls `action` once the RPC has ended, whether it succeeded, failed or was cancelled.

    A `finally` does not suffice: a generator whose client disconnects while it is suspended is closed by the
    garbage collector, some time later.
    """
    context.add_done_callback(lambda _: action())


def _to_started(job: DenoiseJob, fetched: _Fetched) -> denoiser_pb2.Started:
    return denoiser_pb2.Started(
        reuse_steps=job.reuse_steps if fetched.donor else 0,
        total_steps=job.total_steps,
        donor=job.donor if fetched.donor else None,
        degraded=fetched.degraded,
        fetch_seconds=fetched.seconds,
        host_adapter=job.host_adapter if fetched.donor else "",
        resumed_step=job.resume.boundary if job.resume and (fetched.donor or job.donor is None) else 0,
    )


def _to_step_completed(step: Step, job: DenoiseJob) -> denoiser_pb2.StepCompleted:
    return denoiser_pb2.StepCompleted(
        step=latents_pb2.StepRef(index=step.boundary, sigma=step.sigma),
        seconds=step.seconds,
        computed_share=step.computed_share,
        active_tokens=b"" if step.active is None else pack_mask(step.active),
        token_grid=job.token_grid,
        backend=step.backend.backend,
        fallback=step.backend.fallback[:MAX_FALLBACK_CHARACTERS],
        draft=step.draft,
        preview=step.preview,
        preview_fault=step.preview_fault[:MAX_FALLBACK_CHARACTERS],
    )


def _to_video_responses(video: Video) -> Iterator[denoiser_pb2.DenoiseResponse]:
    yield denoiser_pb2.DenoiseResponse(
        video_header=video_pb2.VideoInfo(
            media_type=MEDIA_TYPE,
            size_bytes=len(video.data),
            digest=sha256(video.data),
            frames=video.frames,
            height=video.height,
            width=video.width,
            frames_per_second=video.fps,
            thumbnail=None if video.thumbnail is None else _to_image_info(video.thumbnail),
        )
    )
    for chunk in chunks(video.data):
        yield denoiser_pb2.DenoiseResponse(video_chunk=chunk)


def _to_image_info(thumbnail: Thumbnail) -> video_pb2.ImageInfo:
    return video_pb2.ImageInfo(
        media_type=THUMBNAIL_MEDIA_TYPE,
        size_bytes=len(thumbnail.data),
        digest=sha256(thumbnail.data),
        height=thumbnail.height,
        width=thumbnail.width,
    )


def _to_completed(result: Result) -> denoiser_pb2.Completed:
    thumbnail = result.video.thumbnail
    return denoiser_pb2.Completed(
        steps_run=result.steps_run,
        denoise_seconds=result.denoise_seconds,
        decode_seconds=result.decode_seconds,
        thumbnail=b"" if thumbnail is None else thumbnail.data,
    )
