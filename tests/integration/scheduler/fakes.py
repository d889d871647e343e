"""Scripted embedder, cache and denoiser over real sockets, for one real scheduler process."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.common.v1 import latents_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus.scheduler.v1 import scheduler_pb2_grpc
from chorus_rpc.chunks import chunks
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.contract.tensors import encode_tensor
from services.runtime.interceptors import Gate, ServiceInterceptor
from tests.processes import ServiceProcess, free_port

ENCODER = "enc@1"
VIDEO = b"\x00\x00\x00\x18ftypisom" + bytes(range(256)) * 9_000  # more than two chunks
STEPS = 4
MODEL = denoiser_pb2.ModelInfo(
    model_id="small",
    weights_digest="ab" * 32,
    conditioning_encoder_id=ENCODER,
    codec=denoiser_pb2.CodecInfo(codec_id="s2d", latent_channels=12, temporal_factor=1, spatial_factor=2),
    latent_dtype=latents_pb2.D_TYPE_FLOAT32,
    frames=denoiser_pb2.Bound(min=4, max=16, multiple=4),
    height=denoiser_pb2.Bound(min=32, max=64, multiple=32),
    width=denoiser_pb2.Bound(min=32, max=64, multiple=32),
    steps=denoiser_pb2.Bound(min=1, max=50, multiple=1),
    default_shape=video_pb2.VideoShape(frames=8, height=32, width=32),
    default_schedule=latents_pb2.Schedule(sigmas=[1.0, 0.9375, 0.8333, 0.625, 0.0]),
    schedule_shift=5.0,
    seconds_per_step=0.5,
)


class Fake(ABC):
    """A gRPC server that can stop and restart on the same port."""

    def __init__(self, name: str, service: str) -> None:
        self.name = name
        self.service = service
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
        server = grpc.aio.server(interceptors=[ServiceInterceptor(gate, 60)])
        status = health.aio.HealthServicer()
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
        self.aligned: list[embedder_pb2.AlignRequest] = []
        self.cannot_align = False
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
            token_states=encode_tensor(np.full((3, 4), len(request.prompt), np.float32)),
            truncated=self.truncated,
        )

    async def Align(self, request: Any, context: Any) -> Any:
        self.record_metadata(context)
        await self.answering.wait()
        self.aligned.append(request)
        if self.cannot_align:
            raise RuntimeError("scripted failure")
        return embedder_pb2.AlignResponse(
            alignments=[embedder_pb2.Alignment() for _ in request.donor_prompts]
        )

    async def DescribeEncoders(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")


class FakeCache(Fake, cache_pb2_grpc.CacheServiceServicer):
    def __init__(self) -> None:
        super().__init__("cache", "chorus.cache.v1.CacheService")
        self.reset()

    def reset(self) -> None:
        self.metadata = []
        self.donors: list[cache_pb2.Donor] = []
        self.lookups: list[cache_pb2.LookupRequest] = []
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

    def Fetch(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")

    async def Admit(self, request_iterator: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")

    async def Purge(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")

    async def Stats(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")


class FakeDenoiser(Fake, denoiser_pb2_grpc.DenoiserServiceServicer):
    """Runs without delay, except for a pause where a test sets one."""

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
        self.go = asyncio.Event()
        self.degraded = False
        # Raised once.
        self.fault: Exception | None = None
        self.damage = False

    def register(self, server: grpc.aio.Server) -> None:
        denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server(self, server)

    async def DescribeModels(self, request: Any, context: Any) -> Any:
        return denoiser_pb2.DescribeModelsResponse(models=[MODEL])

    async def Warm(self, request: Any, context: Any) -> Any:
        raise AssertionError("the scheduler does not call this")

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
            async for event in self._events(request):
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped.put_nowait(request.generation_id)
            raise
        finally:
            self.running -= 1

    async def _events(
        self, request: denoiser_pb2.DenoiseRequest
    ) -> AsyncIterator[denoiser_pb2.DenoiseResponse]:
        total = len(request.schedule.sigmas) - 1
        first = 0 if self.degraded else request.plan.reuse_steps
        started = denoiser_pb2.Started(
            reuse_steps=first, total_steps=total, fetch_seconds=0.1 if first else 0
        )
        if first:
            started.donor.CopyFrom(request.plan.donor)
        elif self.degraded:
            started.degraded.message = "the donor's blob is corrupt"
        yield denoiser_pb2.DenoiseResponse(started=started)
        for step in range(first, total):
            await self._pause(step)
            yield denoiser_pb2.DenoiseResponse(
                step_completed=denoiser_pb2.StepCompleted(
                    step=latents_pb2.StepRef(index=step + 1, sigma=request.schedule.sigmas[step + 1]),
                    seconds=0.2,
                    computed_share=1.0,
                )
            )
        yield denoiser_pb2.DenoiseResponse(video_header=video_info())
        for chunk in chunks(VIDEO[:-1] + b"!" if self.damage else VIDEO):
            yield denoiser_pb2.DenoiseResponse(video_chunk=chunk)
        yield denoiser_pb2.DenoiseResponse(
            completed=denoiser_pb2.Completed(
                steps_run=total - first, denoise_seconds=0.2 * (total - first), decode_seconds=0.05
            )
        )
        await self._pause(-1)
        if request.HasField("admission"):
            yield denoiser_pb2.DenoiseResponse(admission=denoiser_pb2.Admission(entry_id="n" * 64))

    async def _pause(self, step: int) -> None:
        if step == self.pause_before:
            await self.go.wait()


def video_info() -> video_pb2.VideoInfo:
    return video_pb2.VideoInfo(
        media_type="video/mp4",
        size_bytes=len(VIDEO),
        digest=hashlib.sha256(VIDEO).hexdigest(),
        frames=8,
        height=64,
        width=64,
        frames_per_second=8,
    )


@dataclass
class World:
    """Three fakes, a scheduler process that uses them, and a client of it."""

    directory: Path
    settings: dict[str, str] = field(default_factory=dict)
    # Names of the fakes that are not started at first.
    absent: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.embedder = FakeEmbedder()
        self.cache = FakeCache()
        self.denoiser = FakeDenoiser()
        env = {
            "CHORUS_SCHEDULER_EMBEDDER_TARGET": self.embedder.target,
            "CHORUS_SCHEDULER_CACHE_TARGET": self.cache.target,
            "CHORUS_SCHEDULER_DENOISER_TARGET": self.denoiser.target,
            "CHORUS_SCHEDULER_DATABASE": str(self.directory / "jobs.db"),
            "CHORUS_SCHEDULER_VIDEO_DIR": str(self.directory / "videos"),
            "CHORUS_SCHEDULER_TENANT": "acme",
            **self.settings,
        }
        self.process = ServiceProcess("scheduler", env, free_port(), self.directory / "scheduler.log")
        # Any, because the async stub types exist only for the type checker.
        self.api: Any = None
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> World:
        for fake in (self.embedder, self.cache, self.denoiser):
            if fake.name not in self.absent:
                await fake.start()
        await self.boot()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None:
            await self._channel.close()
        await asyncio.to_thread(self.process.stop)
        for fake in (self.embedder, self.cache, self.denoiser):
            await fake.die()

    async def refresh(self) -> None:
        """Prepares the next test: resets and starts every fake, starts the scheduler, ends all jobs."""
        for fake in (self.embedder, self.cache, self.denoiser):
            fake.reset()
            if not fake.alive:
                await fake.start()
        assert self.process.process is not None
        if self.process.process.poll() is not None:
            await self.boot()
        listed = await self.api.ListGenerations(pb.ListGenerationsRequest(page_size=200), timeout=20)
        for generation in listed.generations:
            if generation.state in (
                pb.GENERATION_STATE_QUEUED,
                pb.GENERATION_STATE_WAITING,
                pb.GENERATION_STATE_RUNNING,
            ):
                await self.cancel(generation)

    async def boot(self) -> None:
        """Starts or restarts the scheduler."""
        await asyncio.to_thread(self.process.start)
        if self._channel is not None:
            await self._channel.close()
        self._channel = grpc.aio.insecure_channel(self.process.target)
        self.api = scheduler_pb2_grpc.SchedulerServiceStub(self._channel)

    async def submit(self, prompt: str = "a red car", request_id: str = "", **spec: Any) -> pb.Generation:
        reply = await self.api.SubmitGeneration(
            pb.SubmitGenerationRequest(
                request_id=request_id or str(uuid.uuid4()), spec=pb.GenerationSpec(prompt=prompt, **spec)
            ),
            timeout=20,
        )
        generation: pb.Generation = reply.generation
        return generation

    async def get(self, generation: pb.Generation) -> pb.Generation:
        reply = await self.api.GetGeneration(
            pb.GetGenerationRequest(generation_id=generation.generation_id), timeout=20
        )
        current: pb.Generation = reply.generation
        return current

    async def cancel(self, generation: pb.Generation) -> pb.Generation:
        reply = await self.api.CancelGeneration(
            pb.CancelGenerationRequest(generation_id=generation.generation_id), timeout=20
        )
        current: pb.Generation = reply.generation
        return current

    async def events(
        self, generation: pb.Generation, after: int = 0, until: str = ""
    ) -> list[pb.GenerationEvent]:
        """Watches until the generation ends, or up to the first event of kind `until`."""
        events: list[pb.GenerationEvent] = []
        call = self.api.WatchGeneration(
            pb.WatchGenerationRequest(generation_id=generation.generation_id, after_sequence=after),
            timeout=60,
        )
        async for reply in call:
            events.append(reply.event)
            if until and reply.event.WhichOneof("event") == until:
                call.cancel()
                return events
        assert not until, f"ended without {until}: {kinds(events)}\n{self.process.tail()}"
        return events

    async def video(self, generation: pb.Generation) -> tuple[video_pb2.VideoInfo, bytes]:
        call = self.api.GetVideo(pb.GetVideoRequest(generation_id=generation.generation_id), timeout=20)
        parts = [part async for part in call]
        return parts[0].header, b"".join(part.chunk for part in parts[1:])


def kinds(events: list[pb.GenerationEvent]) -> list[str]:
    return [event.WhichOneof("event") or "" for event in events]


def check_sequence(events: list[pb.GenerationEvent]) -> None:
    """Asserts that events have no gap and no repetition, and that exactly one end comes last."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    ends = Counter(kinds(events))
    assert ends["succeeded"] + ends["failed"] + ends["cancelled"] == 1
    assert kinds(events)[-1] in ("succeeded", "failed", "cancelled")
