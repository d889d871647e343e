"""Property tests of resume points: a run that continues from one equals a run without an interruption."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

import pytest
import torch
from chorus.common.v1 import plan_pb2
from chorus_rpc.chunks import BlobFault
from hypothesis import given, settings
from hypothesis import strategies as st

from services.denoiser.denoise import Result, denoise
from services.denoiser.latent_cache import DonorData
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.request import DenoiseJob
from services.denoiser.reuse.resume_point import (
    ResumePoint,
    estimate_bytes,
    pack_resume_point,
    unpack_resume_point,
)
from services.denoiser.reuse.side_data import SideData
from services.denoiser.reuse.stages import Step
from tests.plans import STEPS, plans
from tests.tiny_model import TEXT_DIM, save_host_adapter, save_tiny_model

SHAPE = (12, 2, 8, 8)
TOKENS = 32
RUN = "a" * 64


@dataclass(frozen=True)
class Run:
    steps: list[Step]
    points: list[ResumePoint]
    result: Result | None


class Setting:
    """A tiny model, and the data of a donor."""

    def __init__(self, folder: Path, sampler: str, host: bool) -> None:
        path = save_tiny_model(folder, sampler=sampler)
        if host:
            save_host_adapter(path)
        self.model = LoadedModel.load(path)
        self.predictor = Predictor.eager(self.model)
        generator = torch.Generator().manual_seed(0)
        self.states = torch.randn(5, TEXT_DIM, generator=generator).numpy()
        states = torch.randn(4, TEXT_DIM, generator=generator)
        latents = {i: torch.randn(SHAPE, generator=generator) for i in range(1, STEPS + 1)}
        self.donor = DonorData(latents, SideData(torch.rand(4, 2, 4, 4, generator=generator), states.half()))

    def job(self, plan: plan_pb2.Plan, resume: ResumePoint | None = None) -> DenoiseJob:
        sigmas = self.model.spec.schedule.sigmas
        return DenoiseJob("g", self.model, SHAPE, sigmas, 7, self.states, plan, "r", 1, None, resume=resume)

    def run(
        self,
        plan: plan_pb2.Plan,
        donor: DonorData | None,
        resume: ResumePoint | None = None,
        paused: Event | None = None,
    ) -> Run:
        job, paused = self.job(plan, resume), paused or Event()
        if resume is not None and donor is not None and not job.needs_donor:
            donor = DonorData({}, None)
        events = list(denoise(self.predictor, job, donor, keep=True, parent="", paused=paused))
        result = events[-1] if events and isinstance(events[-1], Result) else None
        steps = [event for event in events if isinstance(event, Step)]
        return Run(steps, [step.resume_point for step in steps if step.resume_point is not None], result)


@pytest.fixture(
    scope="module", params=["euler", "renoise", "euler with a host adapter", "renoise with a host adapter"]
)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    sampler, _, host = request.param.partition(" ")
    return Setting(tmp_path_factory.mktemp("model"), sampler, bool(host))


def pass_on(point: ResumePoint) -> ResumePoint:
    """Returns the point as another process receives it."""
    packed = pack_resume_point(point, RUN)
    assert len(packed) <= estimate_bytes(SHAPE, TOKENS)
    return unpack_resume_point(packed, RUN, SHAPE, TOKENS, range(STEPS))


@settings(max_examples=40, deadline=None)
@given(plan=plans())
def test_continued_run_equals_an_uninterrupted_one(setting: Setting, plan: plan_pb2.Plan) -> None:
    plan.donor.seed = 3  # plans with regions need it where the sampler adds noise
    whole = setting.run(plan, setting.donor)
    check_every_point(setting, plan, setting.donor, whole)


def test_continued_full_computation_equals_an_uninterrupted_one(setting: Setting) -> None:
    plan = plan_pb2.Plan(total_steps=STEPS)
    whole = setting.run(plan, None)
    assert len(whole.points) == STEPS - 1
    check_every_point(setting, plan, None, whole)


def check_every_point(setting: Setting, plan: plan_pb2.Plan, donor: DonorData | None, whole: Run) -> None:
    assert whole.result is not None
    assert [point.boundary for point in whole.points] == [step.boundary for step in whole.steps[:-1]]
    for count, point in enumerate(whole.points, 1):
        later = setting.run(plan, donor, pass_on(point))
        assert later.result is not None
        assert [step.boundary for step in later.steps] == [step.boundary for step in whole.steps[count:]]
        for found, wanted in zip(later.steps, whole.steps[count:], strict=True):
            assert torch.equal(found.latents, wanted.latents)
            assert (found.active is None) == (wanted.active is None)
            assert found.active is None or wanted.active is None or torch.equal(found.active, wanted.active)
        assert later.result.video.data == whole.result.video.data
        assert later.result.steps_run == len(whole.steps) - count
        # What was computed since the point is stored, and nothing else.
        assert later.result.latents.keys() == {
            boundary for boundary in whole.result.latents if boundary >= point.boundary
        }


def test_paused_run_ends_after_its_next_step(setting: Setting) -> None:
    plan, paused = plan_pb2.Plan(total_steps=STEPS), Event()
    events = denoise(setting.predictor, setting.job(plan), None, keep=False, parent="", paused=paused)
    assert isinstance(next(events), Step)
    paused.set()
    assert list(events) == []


def test_run_that_is_paused_before_its_first_step_computes_nothing(setting: Setting) -> None:
    paused = Event()
    paused.set()
    assert setting.run(plan_pb2.Plan(total_steps=STEPS), None, paused=paused) == Run([], [], None)


def test_run_that_is_paused_in_its_last_step_ends_with_its_video(setting: Setting) -> None:
    plan, paused = plan_pb2.Plan(total_steps=STEPS), Event()
    kinds = []
    for event in denoise(setting.predictor, setting.job(plan), None, keep=False, parent="", paused=paused):
        kinds.append(type(event))
        if isinstance(event, Step) and event.boundary == STEPS:
            paused.set()
    assert kinds[-2:] == [Step, Result]


POINT = ResumePoint(2, torch.zeros(SHAPE), torch.ones(TOKENS, dtype=torch.bool))


def test_point_of_another_run_is_rejected() -> None:
    with pytest.raises(BlobFault, match="another request"):
        unpack_resume_point(pack_resume_point(POINT, "b" * 64), RUN, SHAPE, TOKENS, range(STEPS))


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (replace(POINT, boundary=4), "boundary must be 0 to 3, not '4'"),
        (replace(POINT, boundary=-1), "boundary"),
        (replace(POINT, latents=torch.zeros(12, 2, 8, 9)), "expected"),
        (replace(POINT, latents=torch.zeros(SHAPE, dtype=torch.float16)), "expected"),
        (replace(POINT, latents=torch.full(SHAPE, torch.nan)), "NaN"),
        (replace(POINT, region=torch.ones(TOKENS + 1, dtype=torch.bool)), "expected"),
    ],
)
def test_point_that_does_not_fit_is_rejected(point: ResumePoint, message: str) -> None:
    with pytest.raises(BlobFault, match=message):
        unpack_resume_point(pack_resume_point(point, RUN), RUN, SHAPE, TOKENS, range(STEPS))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_point_is_rejected_or_continues_the_same_run(data: st.DataObject) -> None:
    packed = bytearray(pack_resume_point(POINT, RUN))
    end = 8 + int.from_bytes(packed[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packed)))
    for damaged in (bytes(packed), bytes(packed[:cut])):
        try:
            found = unpack_resume_point(damaged, RUN, SHAPE, TOKENS, range(STEPS))
        except BlobFault:
            continue
        assert found.latents.shape == SHAPE
        assert found.boundary in range(STEPS)
