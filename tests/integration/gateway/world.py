"""The gateway on a real socket, in front of a scripted scheduler on another one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from chorus.common.v1 import latents_pb2, video_pb2
from chorus.scheduler.v1 import scheduler_pb2
from chorus_client import AsyncChorusClient
from chorus_rpc import errors, tenancy
from chorus_rpc.errors import ChorusError

from services.gateway.app import create_app
from services.gateway.health import Health
from services.gateway.server import HttpServer, configure, create_client, listen
from services.gateway.settings import GatewaySettings
from tests.integration.client.fakes import VIDEO, FakeDeployment, FakeScheduler

SIGMAS = (1.0, 0.9, 0.8, 0.5, 0.0)
CHUNK = 1 << 18


class KeyedScheduler(FakeScheduler):
    """Scheduler with API keys, if `keys` is not empty: a key sees its own generations only.

    It fills in the defaults of a specification, as the real one does.

    Attributes:
        keys: keys in force.
        open_streams: number of watches and downloads that are under way.
        idle: set while there is none.
        video: bytes of every video; each download sends them in chunks of CHUNK.
        video_fault: error of every download.
        without_url: generations that are deleted before their URL is requested.
        hold_video: unset while downloads stop after their first chunk.
    """

    def __init__(self) -> None:
        super().__init__()
        self.keys: set[str] = set()
        self.owners: dict[str, str] = {}
        self.open_streams = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.video = VIDEO
        self.video_fault: ChorusError | None = None
        self.hold_video = asyncio.Event()
        self.hold_video.set()
        self.submit_fault: ChorusError | None = None
        self.without_url: set[str] = set()
        self.unavailable = False

    def _count(self, change: int) -> None:
        self.open_streams += change
        if self.open_streams:
            self.idle.clear()
        else:
            self.idle.set()

    def _caller(self, context: Any) -> str:
        if self.unavailable:
            raise errors.unavailable("denoiser", "connection refused", retry_after=7)
        key = tenancy.read_key(context.invocation_metadata()).decode()
        if self.keys and key not in self.keys:
            raise ChorusError(errors.UNAUTHENTICATED, "the API key is not one of this scheduler")
        return key if self.keys else ""

    def _check(self, context: Any, generation_id: str) -> None:
        caller = self._caller(context)
        if self.owners.get(generation_id, caller) != caller:
            raise errors.not_found("generation", generation_id)

    async def emit(self, generation: scheduler_pb2.Generation, **event: Any) -> None:
        if "started" in event:
            generation.start_time.GetCurrentTime()
            generation.steps_completed = event["started"].reuse_steps
        if "step_completed" in event:
            generation.steps_completed = event["step_completed"].step.index
        await super().emit(generation, **event)

    async def SubmitGeneration(self, request: Any, context: Any) -> Any:
        caller = self._caller(context)
        if self.submit_fault is not None:
            raise self.submit_fault
        spec = request.spec
        spec.model_id = spec.model_id or "small"
        if not spec.HasField("shape"):
            spec.shape.CopyFrom(video_pb2.VideoShape(frames=16, height=64, width=64))
        if spec.WhichOneof("denoising") is None:
            spec.schedule.CopyFrom(latents_pb2.Schedule(sigmas=SIGMAS))
        if spec.donor_generation_id:
            self._check(context, spec.donor_generation_id)
        response = await super().SubmitGeneration(request, context)
        for generation in response.generations:
            self.owners[generation.generation_id] = caller
        return response

    async def GetGeneration(self, request: Any, context: Any) -> Any:
        self._check(context, request.generation_id)
        return await super().GetGeneration(request, context)

    async def CancelGeneration(self, request: Any, context: Any) -> Any:
        self._check(context, request.generation_id)
        return await super().CancelGeneration(request, context)

    async def DeleteGeneration(self, request: Any, context: Any) -> Any:
        self._check(context, request.generation_id)
        found = self._find(request.generation_id)
        if found.state == scheduler_pb2.GENERATION_STATE_RUNNING:
            raise ChorusError(errors.WRONG_STATE, "it is RUNNING", metadata={"state": "RUNNING"})
        return await super().DeleteGeneration(request, context)

    async def ReportGeneration(self, request: Any, context: Any) -> Any:
        self._check(context, request.generation_id)
        return await super().ReportGeneration(request, context)

    async def WithdrawReport(self, request: Any, context: Any) -> Any:
        self._check(context, request.generation_id)
        return await super().WithdrawReport(request, context)

    async def ChangePriority(self, request: Any, context: Any) -> Any:
        self._check(context, request.generation_id)
        return await super().ChangePriority(request, context)

    async def ListGenerations(self, request: Any, context: Any) -> Any:
        caller = self._caller(context)
        if request.after_generation_id:
            self._check(context, request.after_generation_id)
        response = await super().ListGenerations(request, context)
        kept = [each for each in response.generations if self.owners[each.generation_id] == caller]
        del response.generations[:]
        response.generations.extend(kept)
        return response

    async def ListModels(self, request: Any, context: Any) -> Any:
        self._caller(context)
        return await super().ListModels(request, context)

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        caller = self._caller(context)
        response = await super().GetServerInfo(request, context)
        if caller:
            response.tenant = f"tenant-of-{caller}"
            for service in response.services:
                service.address = service.version = service.detail = ""
        return response

    async def WatchGeneration(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._check(context, request.generation_id)
        self._count(1)
        try:
            async for response in super().WatchGeneration(request, context):
                yield response
        finally:
            self._count(-1)

    def _video_info(self) -> video_pb2.VideoInfo:
        info = super()._video_info()
        info.size_bytes = len(self.video)
        return info

    async def GetVideo(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._check(context, request.generation_id)
        self.ranges.append((request.offset, request.length))
        if self.video_fault is not None:
            raise self.video_fault
        self._count(1)
        try:
            yield scheduler_pb2.GetVideoResponse(header=self._video_info())
            end = request.offset + request.length if request.length else len(self.video)
            drop = self.video_drops.pop(0) if self.video_drops else None
            for sent, offset in enumerate(range(request.offset, end, CHUNK)):
                if sent == drop:
                    raise errors.unavailable("video store", "it went away")
                yield scheduler_pb2.GetVideoResponse(chunk=self.video[offset : min(offset + CHUNK, end)])
                await self.hold_video.wait()
        finally:
            self._count(-1)

    async def GetThumbnail(self, request: Any, context: Any) -> Any:
        self._check(context, request.generation_id)
        return await super().GetThumbnail(request, context)

    async def GetVideoUrl(self, request: Any, context: Any) -> Any:
        self._check(context, request.generation_id)
        if request.generation_id in self.without_url:
            raise errors.not_found("generation", request.generation_id)
        return await super().GetVideoUrl(request, context)


class GatewayDeployment(FakeDeployment):
    """The scheduler of these tests, behind a port."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: KeyedScheduler = KeyedScheduler()


@dataclass
class World:
    """A running gateway.

    Attributes:
        url: address of the gateway.
        http: HTTP client of that address.
    """

    scheduler: KeyedScheduler
    settings: GatewaySettings
    health: Health
    server: uvicorn.Server
    client: AsyncChorusClient
    port: int
    http: httpx.AsyncClient

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def create(self, prompt: str = "a red circle", **fields: Any) -> dict[str, Any]:
        """Creates a video; returns its object."""
        response = await self.http.post("/v1/videos", json={"prompt": prompt, **fields})
        assert response.status_code == 200, response.text
        video: dict[str, Any] = response.json()
        return video

    async def until_idle(self) -> None:
        """Waits until neither a watch nor a download is under way at the scheduler."""
        async with asyncio.timeout(10):
            await self.scheduler.idle.wait()


@contextlib.asynccontextmanager
async def running_world(**settings: Any) -> AsyncIterator[World]:
    """Runs a gateway in front of a scripted scheduler, inside the block."""
    deployment = GatewayDeployment()
    await deployment.start()
    chosen = GatewaySettings(scheduler_target=deployment.target, port=0, **settings)
    health = Health(chosen.instance_id)
    client = create_client(chosen)
    listener = listen(chosen)
    server = HttpServer(configure(chosen, create_app(chosen, client, health)))
    serving = asyncio.create_task(server.serve([listener]))
    port = listener.getsockname()[1]
    http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False)
    try:
        yield World(deployment.scheduler, chosen, health, server, client, port, http)
    finally:
        health.draining.set()
        server.should_exit = True
        server.force_exit = True
        await http.aclose()
        await serving
        listener.close()
        await client.close()
        await deployment.stop()
