"""Fake scheduler whose videos depend only on its cache decision, drawn in the shipped model's world."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import plan_pb2, video_pb2
from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc.chunks import chunks

from evaluation.quality import render_scene
from evaluation.scenes import KINDS, make_groups
from models.shapes import world
from models.shapes.world import Scene
from services.denoiser.codec.mp4 import encode_mp4, to_frames
from tests.integration.client.fakes import STEPS, FakeCache, FakeDeployment, FakeScheduler

GROUPS = make_groups("calibration", len(KINDS), 5, "unseen")
SCENES = {case.prompt: case.scene for group in GROUPS for case in (group.donor, *group.targets)}
UPSCALE = 2
# Region of every step of stage 2: the left half of each of two frames of 4 × 4 tokens.
GRID = (2, 4, 4)
LEFT = np.zeros(GRID, np.bool_)
LEFT[:, :, :2] = True
BALANCED, FAST = plan_pb2.REUSE_POLICY_BALANCED, plan_pb2.REUSE_POLICY_FAST


def normalise_spacing(prompt: str) -> str:
    """Normalises the spacing of a prompt, as the encoders do."""
    return " ".join(prompt.split())


class WorldScheduler(FakeScheduler):
    """Renders the scene of a prompt, or the donor's video after deep reuse.

    `balanced` and `fast` reuse one step of the last entry; explicit plans state their number of steps. With
    `fast`, and with two or more reused steps, the video shows the scene of that entry with its layout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[scheduler_pb2.Generation] = []
        self.videos: dict[str, bytes] = {}
        self.score = 0.9

    async def _play(self, generation: scheduler_pb2.Generation) -> None:
        spec = generation.spec
        spec.shape.CopyFrom(video_pb2.VideoShape(frames=world.FRAMES, height=world.SIDE, width=world.SIDE))
        plan, prompt, seed = self._plan(spec), normalise_spacing(spec.prompt), spec.seed
        generation.plan.CopyFrom(plan)
        if plan.reuse_steps:
            generation.donor.CopyFrom(plan.donor)
            if spec.reuse == FAST or plan.reuse_steps > 1:
                prompt, seed = plan.donor.prompt, self.entries[-1].spec.seed
        generation.steps_run = plan.total_steps - plan.reuse_steps
        await self.emit(generation, planned=scheduler_pb2.PlannedEvent(plan=plan))
        started = scheduler_pb2.StartedEvent(
            reuse_steps=plan.reuse_steps, total_steps=plan.total_steps, attempt=1
        )
        await self.emit(generation, started=started)
        for index in range(plan.reuse_steps + 1, plan.total_steps + 1):
            step = scheduler_pb2.StepCompletedEvent(
                total_steps=plan.total_steps, seconds=0.1, token_grid=GRID
            )
            step.step.index, step.computed_share = index, 1.0
            if index <= plan.region_end:
                step.computed_share = 0.625
                step.active_tokens = np.packbits(LEFT, bitorder="little").tobytes()
            await self.emit(generation, step_completed=step)
        self._keep(generation, self._render(SCENES.get(prompt), seed))
        generation.state = scheduler_pb2.GENERATION_STATE_SUCCEEDED
        generation.timings.total_seconds = 0.1 * generation.steps_run
        await self.emit(
            generation,
            succeeded=scheduler_pb2.SucceededEvent(
                video=generation.video, timings=generation.timings, seconds_saved=0.25
            ),
        )

    def _plan(self, spec: scheduler_pb2.GenerationSpec) -> plan_pb2.Plan:
        plan = plan_pb2.Plan(total_steps=spec.steps or STEPS)
        explicit = spec.HasField("explicit_reuse")
        reuses = spec.explicit_reuse.min_score <= self.score if explicit else spec.reuse in (BALANCED, FAST)
        if not self.entries or not reuses:
            return plan
        entry = self.entries[-1]
        plan.donor.CopyFrom(
            plan_pb2.DonorRef(score=self.score, prompt=entry.spec.prompt, generation_id=entry.generation_id)
        )
        plan.reuse_steps = 1
        if explicit:
            plan.reuse_steps = spec.explicit_reuse.reuse_steps
            plan.region_end = spec.explicit_reuse.region_end
            plan.region.CopyFrom(spec.explicit_reuse.region)
            plan.amplification.CopyFrom(spec.explicit_reuse.amplification)
        plan.edit, plan.predicted_seconds_saved, plan.predicted_drift_points = "colour", 0.3, 1.5
        plan.reasons.add(code=plan_pb2.PLAN_REASON_CODE_EDIT, text="blue instead of red")
        return plan

    def _keep(self, generation: scheduler_pb2.Generation, video: bytes) -> None:
        self.videos[generation.generation_id] = video
        generation.video.CopyFrom(
            video_pb2.VideoInfo(
                size_bytes=len(video),
                digest=hashlib.sha256(video).hexdigest(),
                frames=world.FRAMES,
                height=world.SIDE * UPSCALE,
                width=world.SIDE * UPSCALE,
                frames_per_second=8,
            )
        )
        if not generation.spec.no_store:
            self.entries.append(generation)

    def _render(self, scene: Scene | None, seed: int) -> bytes:
        video = render_scene(scene or Scene("navy", "plain", ()), seed)
        return encode_mp4(to_frames(video, UPSCALE), 8)

    async def DeleteGeneration(self, request: Any, context: Any) -> Any:
        raise AssertionError("the evaluation deletes nothing")

    async def ListModels(self, request: Any, context: Any) -> Any:
        raise AssertionError("the evaluation names its model")

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        raise AssertionError("evaluations do not call this")

    async def PreviewPlan(self, request: Any, context: Any) -> Any:
        raise AssertionError("the evaluation previews nothing")

    async def ReportGeneration(self, request: Any, context: Any) -> Any:
        raise AssertionError("the evaluation reports nothing")

    async def WithdrawReport(self, request: Any, context: Any) -> Any:
        raise AssertionError("the evaluation reports nothing")

    async def ChangePriority(self, request: Any, context: Any) -> Any:
        raise AssertionError("the evaluation moves nothing")

    async def GetVideo(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield scheduler_pb2.GetVideoResponse(header=self._find(request.generation_id).video)
        for chunk in chunks(self.videos[request.generation_id]):
            yield scheduler_pb2.GetVideoResponse(chunk=chunk)


class WorldDeployment(FakeDeployment):
    def __init__(self) -> None:
        super().__init__()
        self.scheduler: WorldScheduler = WorldScheduler()
        self.cache = EmptiedCache(self.scheduler)


class EmptiedCache(FakeCache):
    def __init__(self, scheduler: WorldScheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    async def Purge(self, request: cache_pb2.PurgeRequest, context: Any) -> Any:
        self._scheduler.entries.clear()
        return await super().Purge(request, context)
