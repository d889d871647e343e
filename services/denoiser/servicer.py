"""protobuf ↔ runs: fetch the donor, run the plan, stream the events, admit the result."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
from chorus.common.v1 import errors_pb2, latents_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.chunks import chunks, sha256
from chorus_rpc.errors import ChorusError
from chorus_rpc.tenancy import tenant_of

from services.denoiser.codec.mp4 import MEDIA_TYPE
from services.denoiser.denoise import Result, StepDone, Video, denoise
from services.denoiser.device_thread import DeviceThread
from services.denoiser.latent_cache import DonorData, LatentCache
from services.denoiser.model_registry import ModelRegistry
from services.denoiser.request import DenoiseJob, parse_request
from services.runtime.logs import get_logger

log = get_logger("denoiser")

# Of the reason why a step fell back; a builder's words may be long.
MAX_FALLBACK_CHARACTERS = 500

DenoiseContext = grpc.aio.ServicerContext[denoiser_pb2.DenoiseRequest, denoiser_pb2.DenoiseResponse]


@dataclass(frozen=True)
class _Start:
    """What a run takes from its donor, and what finding that out took."""

    donor: DonorData | None = None
    degraded: errors_pb2.JobError | None = None
    fetch_seconds: float = 0.0


class DenoiserServicer(denoiser_pb2_grpc.DenoiserServiceServicer):
    """Serves one catalogue through one worker; owns neither."""

    def __init__(
        self, catalogue: ModelRegistry, worker: DeviceThread, donors: LatentCache, run_seconds: float
    ) -> None:
        self._catalogue = catalogue
        self._worker = worker
        self._donors = donors
        self._run_seconds = run_seconds

    async def Denoise(
        self, request: denoiser_pb2.DenoiseRequest, context: DenoiseContext
    ) -> AsyncIterator[denoiser_pb2.DenoiseResponse]:
        tenant = tenant_of(context.invocation_metadata())
        job = parse_request(request, self._catalogue.models)
        remaining = context.time_remaining()
        seconds = self._run_seconds if remaining is None else min(remaining, self._run_seconds)
        deadline = time.monotonic() + seconds
        _when_ended(context, self._worker.take_place())
        start = await self._start(job, tenant)
        run = self._worker.submit(
            denoise(job, start.donor, job.admission is not None, telemetry.traceparent()), deadline
        )
        _when_ended(context, run.cancel)
        with telemetry.span(semconv.SPAN_QUEUE):
            await run.begun()
        yield denoiser_pb2.DenoiseResponse(started=_started(job, start))
        async for event in run.events():
            if isinstance(event, StepDone):
                yield _step(event)
            else:
                for response in _video(event.video):
                    yield response
                yield _completed(event)
                log.info("denoised", generation_id=job.generation_id, steps_run=event.steps_run)
                if job.admission is not None:
                    admission = await self._admit(job, tenant, event)
                    yield denoiser_pb2.DenoiseResponse(admission=admission)

    async def DescribeModels(
        self,
        request: denoiser_pb2.DescribeModelsRequest,
        context: grpc.aio.ServicerContext[
            denoiser_pb2.DescribeModelsRequest, denoiser_pb2.DescribeModelsResponse
        ],
    ) -> denoiser_pb2.DescribeModelsResponse:
        return denoiser_pb2.DescribeModelsResponse(models=self._catalogue.describe())

    async def Warm(
        self,
        request: denoiser_pb2.WarmRequest,
        context: grpc.aio.ServicerContext[denoiser_pb2.WarmRequest, denoiser_pb2.WarmResponse],
    ) -> denoiser_pb2.WarmResponse:
        _when_ended(context, self._worker.take_place())
        return denoiser_pb2.WarmResponse(model=await self._catalogue.warm(request.model_id))

    async def _start(self, job: DenoiseJob, tenant: str) -> _Start:
        """The donor's latents, or why they could not be had: then the job is computed in full."""
        if job.donor is None:
            return _Start()
        begin = time.perf_counter()
        try:
            donor = await self._donors.fetch(job, tenant)
        except ChorusError as error:
            log.warning("donor lost", generation_id=job.generation_id, reason=error.message)
            seconds = time.perf_counter() - begin
            return _Start(degraded=errors.to_job_error(error), fetch_seconds=seconds)
        return _Start(donor, fetch_seconds=time.perf_counter() - begin)

    async def _admit(self, job: DenoiseJob, tenant: str, result: Result) -> denoiser_pb2.Admission:
        if not result.latents:
            return denoiser_pb2.Admission()  # a run of one step has nothing between noise and video
        # Without a donor the same latents would have cost every step that leads to them.
        cost = result.denoise_seconds / max(result.computed_steps, 1e-3) * max(result.latents)
        try:
            entry_id = await self._donors.admit(job, tenant, result.latents, cost, result.side)
        except ChorusError as error:
            log.warning("not admitted", generation_id=job.generation_id, reason=error.message)
            return denoiser_pb2.Admission(error=errors.to_job_error(error))
        return denoiser_pb2.Admission(entry_id=entry_id)


def _when_ended(context: Any, action: Callable[[], None]) -> None:
    """Acts once the call is over, however it ended.

    A `finally` would not do: a generator whose client goes away while it is suspended is closed by the
    garbage collector, some time later.
    """
    context.add_done_callback(lambda _: action())


def _started(job: DenoiseJob, start: _Start) -> denoiser_pb2.Started:
    return denoiser_pb2.Started(
        reuse_steps=job.first_step if start.donor else 0,
        total_steps=job.total_steps,
        donor=job.donor if start.donor else None,
        degraded=start.degraded,
        fetch_seconds=start.fetch_seconds,
    )


def _step(event: StepDone) -> denoiser_pb2.DenoiseResponse:
    return denoiser_pb2.DenoiseResponse(
        step_completed=denoiser_pb2.StepCompleted(
            step=latents_pb2.StepRef(index=event.index, sigma=event.sigma),
            seconds=event.seconds,
            computed_share=event.computed_share,
            active_tokens=event.active,
            token_grid=event.grid,
            backend=event.backend.backend,
            fallback=event.backend.fallback[:MAX_FALLBACK_CHARACTERS],
        )
    )


def _video(video: Video) -> Iterator[denoiser_pb2.DenoiseResponse]:
    yield denoiser_pb2.DenoiseResponse(
        video_header=video_pb2.VideoInfo(
            media_type=MEDIA_TYPE,
            size_bytes=len(video.data),
            digest=sha256(video.data),
            frames=video.frames,
            height=video.height,
            width=video.width,
            frames_per_second=video.fps,
        )
    )
    for chunk in chunks(video.data):
        yield denoiser_pb2.DenoiseResponse(video_chunk=chunk)


def _completed(result: Result) -> denoiser_pb2.DenoiseResponse:
    return denoiser_pb2.DenoiseResponse(
        completed=denoiser_pb2.Completed(
            steps_run=result.steps_run,
            denoise_seconds=result.denoise_seconds,
            decode_seconds=result.decode_seconds,
        )
    )
