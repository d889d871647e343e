"""The gateway with its console in front of a scripted scheduler and cache, with videos that can be played."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import html
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
from chorus.common.v1 import errors_pb2, plan_pb2, video_pb2
from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc import errors
from chorus_rpc.chunks import chunks

from services.gateway.app import create_app
from services.gateway.health import Health
from services.gateway.server import HttpServer, configure, create_cache_client, create_client, listen
from services.gateway.settings import GatewaySettings
from tests.integration.client.fakes import FakeCache
from tests.integration.gateway.console.painting import (
    FRAMES,
    RATE,
    SIDE,
    encode_preview,
    encode_thumbnail,
    encode_video,
    pack_region,
)
from tests.integration.gateway.world import GatewayDeployment, KeyedScheduler

STEPS = 8
GRID = (4, 16, 16)
COLOURS = ("red", "royalblue", "gold", "seagreen", "orchid", "tomato")


class ConsoleScheduler(KeyedScheduler):
    """Scheduler with a first miss and hits on it.

    A prompt that contains a word of `COLOURS` shows that colour. "slow …" stops after a step until it is
    cancelled, "queued …" waits in the queue, "fail …" fails, "repeat …" is an exact repeat.
    """

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, tuple[bytes, bytes]] = {}
        self.starting = False

    async def _play(self, generation: scheduler_pb2.Generation) -> None:
        prompt = generation.spec.prompt
        donors = [
            each
            for each in self.generations.values()
            if each.state == scheduler_pb2.GENERATION_STATE_SUCCEEDED
            and each.generation_id != generation.generation_id
        ]
        donor = self.generations.get(generation.spec.donor_generation_id) or (donors[-1] if donors else None)
        if generation.spec.reuse == plan_pb2.REUSE_POLICY_OFF:
            donor = None
        plan = make_plan(prompt, donor)
        generation.plan.CopyFrom(plan)
        generation.trace_id = "5" * 32
        await self._emit(generation, queued=scheduler_pb2.QueuedEvent(queue_position=1))
        if prompt.startswith("queued"):
            generation.state, generation.queue_position = scheduler_pb2.GENERATION_STATE_QUEUED, 1
            return
        await self._emit(generation, planned=scheduler_pb2.PlannedEvent(plan=plan))
        started = scheduler_pb2.StartedEvent(reuse_steps=plan.reuse_steps, total_steps=STEPS, attempt=1)
        await self._emit(generation, started=started)
        generation.attempts = 1
        for index in range(plan.reuse_steps + 1, STEPS + 1):
            await self.compute_step(generation, index)
            if prompt.startswith("slow"):
                return
        if prompt.startswith("fail"):
            fault = errors_pb2.JobError(
                reason=errors_pb2.ERROR_REASON_INTERNAL, message="the model produced NaN at step 3"
            )
            generation.state = scheduler_pb2.GENERATION_STATE_FAILED
            generation.error.CopyFrom(fault)
            await self._emit(generation, failed=scheduler_pb2.FailedEvent(error=fault))
            return
        await self.succeed(generation)

    async def compute_step(self, generation: scheduler_pb2.Generation, index: int) -> None:
        """Reports a step of a running generation."""
        step = scheduler_pb2.StepCompletedEvent(total_steps=STEPS, seconds=0.62, computed_share=1.0)
        step.eta_seconds = 0.62 * (STEPS - index)
        step.step.index = index
        if index <= generation.plan.region_end:
            step.active_tokens, step.computed_share, step.seconds = pack_region(*GRID), 0.31, 0.24
            step.token_grid.extend(GRID)
        if generation.spec.step_previews:
            step.preview = encode_preview(*find_look(generation.spec.prompt), index)
        generation.steps_completed, generation.steps_run = index, index - generation.plan.reuse_steps
        await self._emit(generation, step_completed=step)

    async def succeed(self, generation: scheduler_pb2.Generation) -> None:
        """Ends a generation with a video."""
        prompt = generation.spec.prompt
        colour, shape = find_look(prompt)
        self.files[generation.generation_id] = (encode_video(colour, shape), encode_thumbnail(colour, shape))
        plan = generation.plan
        if plan.reuse_steps:
            generation.donor.CopyFrom(plan.donor)
            generation.seconds_saved = 0.58 * plan.reuse_steps
        generation.steps_run = STEPS - plan.reuse_steps
        generation.video.CopyFrom(self._describe(generation.generation_id))
        timings = generation.timings
        timings.queued_seconds, timings.embed_seconds, timings.lookup_seconds = 0.4, 0.03, 0.06
        timings.fetch_seconds = 0.09 if plan.reuse_steps else 0
        timings.denoise_seconds = 0.6 * generation.steps_run
        timings.decode_seconds, timings.total_seconds = 0.35, 0.6 * generation.steps_run + 0.53
        generation.state = scheduler_pb2.GENERATION_STATE_SUCCEEDED
        generation.end_time.GetCurrentTime()
        await self._emit(
            generation,
            succeeded=scheduler_pb2.SucceededEvent(
                video=generation.video,
                steps_run=generation.steps_run,
                timings=timings,
                seconds_saved=generation.seconds_saved,
            ),
        )

    async def _emit(self, generation: scheduler_pb2.Generation, **event: Any) -> None:
        await self.emit(generation, **event)
        self.events[generation.generation_id][-1].time.GetCurrentTime()

    def _describe(self, generation_id: str) -> video_pb2.VideoInfo:
        video, thumbnail = self.files[generation_id]
        info = video_pb2.VideoInfo(
            media_type="video/mp4",
            size_bytes=len(video),
            digest=hashlib.sha256(video).hexdigest(),
            frames=FRAMES,
            height=SIDE,
            width=SIDE,
            frames_per_second=RATE,
        )
        info.thumbnail.media_type, info.thumbnail.size_bytes = "image/jpeg", len(thumbnail)
        return info

    async def GetVideo(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._check(context, request.generation_id)
        yield scheduler_pb2.GetVideoResponse(header=self._describe(request.generation_id))
        end = request.offset + request.length if request.length else None
        for chunk in chunks(self.files[request.generation_id][0][request.offset : end], 1 << 16):
            yield scheduler_pb2.GetVideoResponse(chunk=chunk)

    async def GetThumbnail(self, request: Any, context: Any) -> Any:
        self._check(context, request.generation_id)
        info = video_pb2.ImageInfo(media_type="image/jpeg", height=SIDE, width=SIDE)
        return scheduler_pb2.GetThumbnailResponse(info=info, data=self.files[request.generation_id][1])

    async def ListModels(self, request: Any, context: Any) -> Any:
        if self.starting:
            raise errors.unavailable("denoiser", "it is still starting")
        return await super().ListModels(request, context)

    async def CancelGeneration(self, request: Any, context: Any) -> Any:
        found = self._find(request.generation_id)
        if found.state == scheduler_pb2.GENERATION_STATE_QUEUED:
            found.state = scheduler_pb2.GENERATION_STATE_RUNNING  # which alone the fake cancels
        return await super().CancelGeneration(request, context)

    async def PreviewPlan(self, request: Any, context: Any) -> Any:
        self._caller(context)
        if request.spec.shape.frames > 64:
            raise errors.invalid("spec.shape.frames", "must be 8 to 64")
        donors = [each for each in self.generations.values() if each.generation_id in self.files]
        plan = make_plan(request.spec.prompt, donors[-1] if donors else None)
        return scheduler_pb2.PreviewPlanResponse(
            spec=request.spec, plan=plan, run_seconds=3.6, queue_seconds=0.0
        )


def find_look(prompt: str) -> tuple[str, str]:
    """Returns the colour and the shape of a prompt's video."""
    colour = next((each for each in COLOURS if each in prompt.split()), "silver")
    return colour, "square" if "square" in prompt else "circle"


def make_plan(prompt: str, donor: scheduler_pb2.Generation | None) -> plan_pb2.Plan:
    """Returns the plan of a prompt: a miss without a donor."""
    plan = plan_pb2.Plan(total_steps=STEPS)
    if donor is None:
        plan.reasons.add(code=plan_pb2.PLAN_REASON_CODE_NO_DONOR, text="the cache has no similar entry")
        return plan
    plan.donor.entry_id, plan.donor.generation_id = "e" * 64, donor.generation_id
    plan.donor.prompt, plan.donor.score = donor.spec.prompt, 0.93
    if prompt.startswith("repeat"):
        plan.reuse_steps = STEPS
        plan.reasons.add(code=plan_pb2.PLAN_REASON_CODE_EXACT, text="computed before with this seed")
        return plan
    plan.reuse_steps, plan.region_end, plan.edit = 3, 6, "colour"
    plan.region.source, plan.region.threshold = plan_pb2.REGION_SOURCE_PROBE, 0.02
    plan.predicted_seconds_saved, plan.predicted_drift_points = 1.9, 1.2
    plan.reasons.add(code=plan_pb2.PLAN_REASON_CODE_EDIT, text="one word gained, one lost: colour")
    plan.reasons.add(
        code=plan_pb2.PLAN_REASON_CODE_CALIBRATION, text="colour at depth 3: drift 1.2 points of 2.0 allowed"
    )
    plan.passed_over.add(
        generation_id=donor.generation_id,
        score=0.81,
        prompt="a large gold square moving up",
        edit="shape",
        reason="less similar",
    )
    return plan


def read_text(page: str) -> str:
    """Returns the text of a page without its tags."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


class ConsoleDeployment(GatewayDeployment):
    """Scheduler and cache of these tests, behind one port."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: ConsoleScheduler = ConsoleScheduler()
        self.cache: FakeCache = FakeCache()


class Console:
    """A running gateway with its console, as a browser sees it.

    Attributes:
        http: HTTP client that keeps cookies, and follows no redirect.
    """

    def __init__(self, deployment: ConsoleDeployment, http: httpx.AsyncClient, port: int) -> None:
        self.scheduler, self.cache, self.http, self.port = deployment.scheduler, deployment.cache, http, port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self, path: str = "/") -> str:
        """Returns the text of a page, which must be there."""
        response = await self.http.get(f"/console{path}")
        assert response.status_code == 200, (response.status_code, response.text[:500])
        return response.text

    async def send(self, path: str, **fields: str) -> httpx.Response:
        """Sends a form of a page that was opened before."""
        page = await self.open()
        found = re.search(r'name="form_token" value="([0-9a-f]{64})"', page)
        assert found is not None
        return await self.http.post(f"/console{path}", data={"form_token": found[1], **fields})

    async def log_in(self, key: str) -> None:
        """Starts a session with a key, in the place of any other one."""
        self.http.cookies.clear()
        page = (await self.http.get("/console/login")).text
        found = re.search(r'name="form_token" value="([0-9a-f]{64})"', page)
        assert found is not None
        fields = {"form_token": found[1], "key": key}
        assert (await self.http.post("/console/login", data=fields)).status_code == 303

    async def make(self, prompt: str, **fields: str) -> str:
        """Sends the form of the Studio; returns the path of the video, without /console."""
        response = await self.send("/submit", prompt=prompt, **fields)
        assert response.status_code == 303, response.text[:500]
        return response.headers["location"].removeprefix("/console")

    def find(self, path: str) -> scheduler_pb2.Generation:
        """Returns the generation of the path of a video."""
        return self.scheduler.generations[path.rpartition("video_")[2]]


@contextlib.asynccontextmanager
async def running_console(*, with_cache: bool = True, **settings: Any) -> AsyncIterator[Console]:
    """Runs a gateway with a console inside the block."""
    deployment = ConsoleDeployment()
    await deployment.start()
    if with_cache:
        settings["console_cache_target"] = deployment.target
    chosen = GatewaySettings(scheduler_target=deployment.target, port=0, drain_seconds=1, **settings)
    health, client, cache = Health(), create_client(chosen), create_cache_client(chosen)
    listener = listen(chosen)
    server = HttpServer(configure(chosen, create_app(chosen, client, health, cache)))
    serving = asyncio.create_task(server.serve([listener]))
    port = listener.getsockname()[1]
    http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False)
    try:
        yield Console(deployment, http, port)
    finally:
        health.draining.set()
        server.should_exit = server.force_exit = True
        await http.aclose()
        await serving
        listener.close()
        await client.close()
        if cache is not None:
            await cache.close()
        await deployment.stop()
