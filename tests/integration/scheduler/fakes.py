"""Scripted embedder, cache and denoiser over real sockets."""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import numpy as np
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.common.v1 import errors_pb2, latents_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from chorus_rpc import errors
from chorus_rpc.chunks import chunks
from chorus_rpc.errors import ChorusError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.contract.tensors import encode_tensor
from services.runtime.health import HealthServicer
from services.runtime.interceptors import Gate, ServiceInterceptor
from tests.processes import free_port

ENCODER = "enc@1"
VIDEO = b"\x00\x00\x00\x18ftypisom" + bytes(range(256)) * 9_000  # more than two chunks
THUMBNAIL = b"\xff\xd8 a picture"
STEPS = 4
MODEL = denoiser_pb2.ModelInfo(
    model_id="small",
    weights_digest="ab" * 32,
    model_digest="cd" * 32,
    conditioning_encoder_id=ENCODER,
    codec=denoiser_pb2.CodecInfo(codec_id="s2d", latent_channels=12, temporal_factor=1, spatial_factor=2),
    latent_dtype=latents_pb2.D_TYPE_FLOAT32,
    frames=video_pb2.Bound(min=4, max=16, multiple=4),
    height=video_pb2.Bound(min=32, max=64, multiple=32),
    width=video_pb2.Bound(min=32, max=64, multiple=32),
    steps=video_pb2.Bound(min=1, max=50, multiple=1),
    default_shape=video_pb2.VideoShape(frames=8, height=32, width=32),
    default_schedule=latents_pb2.Schedule(sigmas=[1.0, 0.9375, 0.8333, 0.625, 0.0]),
    schedule_shift=5.0,
    seconds_per_step=0.5,
    sampler="euler",
    layers=6,
    max_text_tokens=8,
)


class Fake(ABC):
    """A gRPC server that can stop and restart on the same port."""

    def __init__(self, name: str, service: str) -> None:
        self.name = name
        self.service = service
        self.call_seconds = 60.0
        self.version = f"0.7-{name}"
        self.port = free_port()
        self.metadata: list[dict[str, Any]] = []
        self._server: grpc.aio.Server | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @abstractmethod
    def register(self, server: grpc.aio.Server) -> None: ...

    @abstractmethod
    def reset(self) -> None:
        """Restores the initial state, for the next test."""

    async def start(self) -> None:
        gate = Gate(self.name)
        gate.open()
        server = grpc.aio.server(interceptors=[ServiceInterceptor(gate, self.call_seconds)])
        status = HealthServicer("", self.version)
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        await status.set(self.service, health_pb2.HealthCheckResponse.SERVING)
        self.register(server)
        server.add_insecure_port(self.target)
        await server.start()
        self._server = server

    async def die(self) -> None:
        """Breaks every connection, as if the process had been killed."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    @property
    def alive(self) -> bool:
        return self._server is not None

    def record_metadata(self, context: Any) -> None:
        self.metadata.append(dict(context.invocation_metadata()))


class FakeEmbedder(Fake, embedder_pb2_grpc.EmbedderServiceServicer):
    def __init__(self) -> None:
        super().__init__("embedder", "chorus.embedder.v1.EmbedderService")
        self.reset()

    def reset(self) -> None:
        self.metadata = []
        self.truncated = False
        self.encoders = [ENCODER]
        self.described = "ret@1"  # retrieval encoder in the answer to DescribeEncoders
        self.aligned: list[embedder_pb2.AlignRequest] = []
        self.cannot_align = False
        # Prompts that differ in the wording only.
        self.alignment = embedder_pb2.Alignment(gained=[embedder_pb2.AlignedToken(index=0, weight=0.1)])
        self.tokens = 3
        self.answering = asyncio.Event()
        self.answering.set()

    def register(self, server: grpc.aio.Server) -> None:
        embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(self, server)

    async def Embed(self, request: Any, context: Any) -> Any:
        self.record_metadata(context)
        await self.answering.wait()
        return embedder_pb2.EmbedResponse(
            retrieval_encoder_id="ret@1",
            retrieval_vector=[0.6, 0.8],
            conditioning_encoder_id=request.conditioning_encoder_id,
            token_states=encode_tensor(np.full((self.tokens, 4), len(request.prompt), np.float32)),
            truncated=self.truncated,
        )

    async def Align(self, request: Any, context: Any) -> Any:
        self.record_metadata(context)
        await self.answering.wait()
        self.aligned.append(request)
        if self.cannot_align:
            raise RuntimeError("scripted failure")
        return embedder_pb2.AlignResponse(alignments=[self.alignment for _ in request.donor_prompts])

    async def DescribeEncoders(self, request: Any, context: Any) -> Any:
        return embedder_pb2.DescribeEncodersResponse(
            encoders=[
                *(embedder_pb2.EncoderInfo(encoder_id=name, conditioning=True) for name in self.encoders),
                embedder_pb2.EncoderInfo(encoder_id=self.described, retrieval=True, vector_dim=2),
            ]
        )


class FakeCache(Fake, cache_pb2_grpc.CacheServiceServicer):
    def __init__(self) -> None:
        super().__init__("cache", "chorus.cache.v1.CacheService")
        self.reset()

    def reset(self) -> None:
        self.metadata = []
        self.donors: list[cache_pb2.Donor] = []
        self.lookups: list[cache_pb2.LookupRequest] = []
        self.finds: list[cache_pb2.FindRequest] = []
        self.found = asyncio.Event()  # set by the first Find
        self.results: dict[str, cache_pb2.Entry] = {}  # by policy of the approximation; "" for full ones
        self.answering = asyncio.Event()
        self.answering.set()

    def register(self, server: grpc.aio.Server) -> None:
        cache_pb2_grpc.add_CacheServiceServicer_to_server(self, server)

    def hold(self, score: float, *steps: int) -> None:
        """Makes every further lookup return one donor with these steps."""
        entry = cache_pb2.Entry(
            entry_id="e" * 64,
            prompt="a donor's prompt",
            generation_id="donor-generation",
            blobs=[latents_pb2.BlobHeader(step=latents_pb2.StepRef(index=step)) for step in steps],
        )
        self.donors = [cache_pb2.Donor(entry=entry, score=score)]

    async def Lookup(self, request: Any, context: Any) -> Any:
        self.record_metadata(context)
        self.lookups.append(request)
        await self.answering.wait()
        return cache_pb2.LookupResponse(donors=self.donors)

    async def Find(self, request: Any, context: Any) -> Any:
        self.finds.append(request)
        self.found.set()
        return cache_pb2.FindResponse(entry=self.results.get(request.identity.approximation.policy))

    def Fetch(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")

    async def Admit(self, request_iterator: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")

    async def Purge(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")

    async def Stats(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")

    async def ListEntries(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")

    async def GetEntry(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")

    async def MapEntries(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")

    def VerifyEntries(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")

    async def Adopt(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")


class FakeDenoiser(Fake, denoiser_pb2_grpc.DenoiserServiceServicer):
    """Runs without delay, except for a pause that a test sets."""

    def __init__(self) -> None:
        super().__init__("denoiser", "chorus.denoiser.v1.DenoiserService")
        self.running = 0
        self.reset()

    def reset(self) -> None:
        self.metadata = []
        self.requests: list[denoiser_pb2.DenoiseRequest] = []
        self.time_remaining: list[float] = []
        self.max_running = 0
        self.stopped: asyncio.Queue[str] = asyncio.Queue()
        # Step before which a run waits for `go`; -1 for the Admission event.
        self.pause_before: int | None = None
        # Duration of each step, for jobs that must last.
        self.step_seconds = 0.0
        self.go = asyncio.Event()
        self.degraded = False
        self.active_tokens = b""
        # Error of every admission, sent before or after Completed.
        self.refusal: errors_pb2.JobError | None = None
        self.refuses_early = False
        self.ends_before_admission = False
        self.keeps_nothing = False  # as in an exact repeat, which has no latents to admit
        # Raised once.
        self.fault: Exception | None = None
        self.damage = False
        # By id of a run that sends resume points: requests its pause.
        self.pausable: dict[str, asyncio.Event] = {}
        self.rejects_resume_points = False
        self.thumbnail = THUMBNAIL  # b"": the run makes none
        self.preview = b"a picture"  # of each step, if the request wants it; b"": it cannot be made
        self.models = [MODEL]

    def register(self, server: grpc.aio.Server) -> None:
        denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server(self, server)

    async def DescribeModels(self, request: Any, context: Any) -> Any:
        return denoiser_pb2.DescribeModelsResponse(models=self.models)

    async def Warm(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")

    async def PauseRun(self, request: Any, context: Any) -> Any:
        if request.generation_id not in self.pausable:
            raise errors.not_found("run that can be paused", request.generation_id)
        self.pausable[request.generation_id].set()
        return denoiser_pb2.PauseRunResponse()

    async def Denoise(self, request: Any, context: Any) -> AsyncIterator[denoiser_pb2.DenoiseResponse]:
        self.record_metadata(context)
        self.requests.append(request)
        self.time_remaining.append(context.time_remaining())
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        try:
            if self.fault is not None:
                fault, self.fault = self.fault, None
                raise fault
            if request.resume_point and self.rejects_resume_points:
                raise errors.invalid("resume_point", "belongs to a run of another request, model or plan")
            if request.max_resume_point_bytes:
                self.pausable[request.generation_id] = asyncio.Event()
            async for event in self._events(request):
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped.put_nowait(request.generation_id)
            raise
        finally:
            self.running -= 1
            self.pausable.pop(request.generation_id, None)

    async def _events(
        self, request: denoiser_pb2.DenoiseRequest
    ) -> AsyncIterator[denoiser_pb2.DenoiseResponse]:
        total = len(request.schedule.sigmas) - 1
        first = 0 if self.degraded else request.plan.reuse_steps
        started = denoiser_pb2.Started(
            reuse_steps=first,
            total_steps=total,
            fetch_seconds=0.1 if first else 0,
            resumed_step=int(request.resume_point or 0),
        )
        if first:
            started.donor.CopyFrom(request.plan.donor)
        elif self.degraded:
            started.degraded.message = "the donor's blob is corrupt"
        yield denoiser_pb2.DenoiseResponse(started=started)
        first = max(first, started.resumed_step)
        pause = self.pausable.get(request.generation_id)
        for step in range(first, total):
            await self._pause(step)
            yield denoiser_pb2.DenoiseResponse(
                step_completed=denoiser_pb2.StepCompleted(
                    step=latents_pb2.StepRef(index=step + 1, sigma=request.schedule.sigmas[step + 1]),
                    seconds=0.2,
                    computed_share=1.0,
                    active_tokens=self.active_tokens,
                    preview=self.preview if request.step_previews else b"",
                    preview_fault="out of memory" if request.step_previews and not self.preview else "",
                    resume_point=str(step + 1).encode() if pause and step + 1 < total else b"",
                )
            )
            if pause and pause.is_set() and step + 1 < total:
                yield denoiser_pb2.DenoiseResponse(paused=denoiser_pb2.Paused())
                return
        yield denoiser_pb2.DenoiseResponse(video_header=video_info(thumbnail=bool(self.thumbnail)))
        for chunk in chunks(VIDEO[:-1] + b"!" if self.damage else VIDEO):
            yield denoiser_pb2.DenoiseResponse(video_chunk=chunk)
        admission = denoiser_pb2.Admission(entry_id="n" * 64)
        if self.keeps_nothing:
            admission = denoiser_pb2.Admission()
        if self.refusal is not None:
            admission = denoiser_pb2.Admission(error=self.refusal)
        if self.refuses_early:
            yield denoiser_pb2.DenoiseResponse(admission=admission)
        yield denoiser_pb2.DenoiseResponse(
            completed=denoiser_pb2.Completed(
                steps_run=total - first,
                denoise_seconds=0.2 * (total - first),
                decode_seconds=0.05,
                thumbnail=self.thumbnail,
            )
        )
        await self._pause(-1)
        if self.ends_before_admission:
            raise ChorusError(errors.DEADLINE_EXCEEDED, "the deadline passed")
        if request.HasField("admission") and not self.refuses_early:
            yield denoiser_pb2.DenoiseResponse(admission=admission)

    async def _pause(self, step: int) -> None:
        await asyncio.sleep(self.step_seconds)
        if step == self.pause_before:
            await self.go.wait()


def video_info(*, thumbnail: bool = True) -> video_pb2.VideoInfo:
    picture = video_pb2.ImageInfo(
        media_type="image/jpeg",
        size_bytes=len(THUMBNAIL),
        digest=hashlib.sha256(THUMBNAIL).hexdigest(),
        height=64,
        width=64,
    )
    return video_pb2.VideoInfo(
        media_type="video/mp4",
        size_bytes=len(VIDEO),
        digest=hashlib.sha256(VIDEO).hexdigest(),
        frames=8,
        height=64,
        width=64,
        frames_per_second=8,
        thumbnail=picture if thumbnail else None,
    )
