"""One real scheduler process with scripted peers, and a client of it."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from chorus.common.v1 import video_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus.scheduler.v1 import scheduler_pb2_grpc

from tests.integration.scheduler.fakes import Fake, FakeCache, FakeDenoiser, FakeEmbedder
from tests.processes import ServiceProcess, free_port


@dataclass
class World:
    """Fakes, a scheduler process that uses them, and a client of it."""

    directory: Path
    settings: dict[str, str] = field(default_factory=dict)
    # Names of the fakes that are not started at first.
    absent: set[str] = field(default_factory=set)
    # A world whose fakes, settings and directories this one uses too, with a scheduler of its own.
    sharing_with: World | None = None
    # Number of denoisers; `denoiser` is the first of them.
    denoiser_count: int = 1

    def __post_init__(self) -> None:
        sharing_with = self.sharing_with
        self.embedder: FakeEmbedder = sharing_with.embedder if sharing_with else FakeEmbedder()
        self.cache: FakeCache = sharing_with.cache if sharing_with else FakeCache()
        self.denoisers: list[FakeDenoiser] = (
            sharing_with.denoisers if sharing_with else [FakeDenoiser() for _ in range(self.denoiser_count)]
        )
        self.denoiser: FakeDenoiser = self.denoisers[0]
        env = {
            "CHORUS_SCHEDULER_EMBEDDER_TARGET": self.embedder.target,
            "CHORUS_SCHEDULER_CACHE_TARGET": self.cache.target,
            "CHORUS_SCHEDULER_DENOISER_TARGET": ",".join(each.target for each in self.denoisers),
            "CHORUS_SCHEDULER_DATABASE": str(self.directory / "jobs.db"),
            "CHORUS_SCHEDULER_VIDEO_DIR": str(self.directory / "videos"),
            "CHORUS_SCHEDULER_TENANT": "acme",
            **(sharing_with.settings if sharing_with else {}),
            **self.settings,
        }
        if env.get("CHORUS_SCHEDULER_VIDEO_STORE"):
            del env["CHORUS_SCHEDULER_VIDEO_DIR"]
        port = free_port()
        self.process = ServiceProcess("scheduler", env, port, self.directory / f"scheduler-{port}.log")
        # Any, because the async stub types exist only for the type checker.
        self.api: Any = None
        self._channel: grpc.aio.Channel | None = None

    @property
    def fakes(self) -> list[Fake]:
        return [self.embedder, self.cache, *self.denoisers]

    async def __aenter__(self) -> World:
        for fake in self.fakes:
            if fake.name not in self.absent and self.sharing_with is None:
                await fake.start()
        await self.boot()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None:
            await self._channel.close()
        await asyncio.to_thread(self.process.stop)
        if self.sharing_with is None:
            for fake in self.fakes:
                await fake.die()

    async def refresh(self) -> None:
        """Prepares the next test: resets and starts every fake, starts the scheduler, ends all jobs."""
        for fake in self.fakes:
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
        self, generation: pb.Generation, after: int = 0, until: str = "", seconds: float = 60.0
    ) -> list[pb.GenerationEvent]:
        """Watches until the generation ends, or up to the first event of kind `until`; at most `seconds`."""
        events: list[pb.GenerationEvent] = []
        call = self.api.WatchGeneration(
            pb.WatchGenerationRequest(generation_id=generation.generation_id, after_sequence=after),
            timeout=seconds,
        )
        async for reply in call:
            events.append(reply.event)
            if until and reply.event.WhichOneof("event") == until:
                call.cancel()
                return events
        assert not until, f"ended without {until}: {kinds(events)}\n{self.process.tail()}"
        return events

    async def video(
        self, generation: pb.Generation, offset: int = 0, length: int = 0
    ) -> tuple[video_pb2.VideoInfo, bytes]:
        request = pb.GetVideoRequest(generation_id=generation.generation_id, offset=offset, length=length)
        call = self.api.GetVideo(request, timeout=20)
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
