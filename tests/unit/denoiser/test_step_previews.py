"""Verifies the pictures of steps: they change nothing of a run, and one that fails costs no video."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from threading import Event

import av
import numpy as np
import pytest
import torch
from chorus.common.v1 import plan_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.denoiser import denoise as denoise_module
from services.denoiser.denoise import Result, denoise
from services.denoiser.device_thread import DeviceFailed
from services.denoiser.latent_cache import DonorData
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.request import DenoiseJob
from services.denoiser.reuse.side_data import SideData
from services.denoiser.reuse.stages import Step
from tests.plans import STEPS, plans
from tests.tiny_model import TEXT_DIM, save_host_adapter, save_tiny_model

SHAPE = (12, 2, 8, 8)
FULL = plan_pb2.Plan(total_steps=STEPS)


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

    def job(self, plan: plan_pb2.Plan, *, previews: bool = True) -> DenoiseJob:
        sigmas = self.model.spec.schedule.sigmas
        return DenoiseJob(
            "g", self.model, SHAPE, sigmas, 7, self.states, plan, "r", 1, None, step_previews=previews
        )

    def run(
        self, job: DenoiseJob, donor: DonorData | None = None, paused: Event | None = None
    ) -> tuple[list[Step], Result]:
        *steps, result = denoise(self.predictor, job, donor, keep=True, parent="", paused=paused)
        assert isinstance(result, Result)
        return [step for step in steps if isinstance(step, Step)], result


@pytest.fixture(
    scope="module", params=["euler", "renoise", "euler with a host adapter", "renoise with a host adapter"]
)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    sampler, _, host = request.param.partition(" ")
    return Setting(tmp_path_factory.mktemp("model"), sampler, bool(host))


@settings(max_examples=25, deadline=None)
@given(plan=st.one_of(st.just(FULL), plans()))
def test_pictures_change_nothing_of_the_run(setting: Setting, plan: plan_pb2.Plan) -> None:
    donor = setting.donor if plan.reuse_steps else None
    if donor is not None:
        plan.donor.seed = 3
    steps, result = setting.run(setting.job(plan), donor)
    plain_steps, plain = setting.run(setting.job(plan, previews=False), donor)
    assert result.video == plain.video
    assert result.latents.keys() == plain.latents.keys()
    assert all(torch.equal(latents, plain.latents[index]) for index, latents in result.latents.items())
    for step, other in zip(steps, plain_steps, strict=True):
        assert torch.equal(step.latents, other.latents)
        with Image.open(io.BytesIO(step.preview)) as picture:
            assert (picture.format, picture.size) == ("JPEG", (32, 32))
        assert (step.preview_fault, other.preview, other.preview_fault) == ("", b"", "")


def test_last_picture_is_that_of_the_video(setting: Setting) -> None:
    steps, result = setting.run(setting.job(FULL))
    assert result.video.thumbnail is not None
    shown, wanted = (
        np.asarray(Image.open(io.BytesIO(data))).astype(int)
        for data in (steps[-1].preview, result.video.thumbnail.data)
    )
    assert np.array_equal(shown, wanted)


def test_run_that_continues_has_the_pictures_of_its_further_steps(setting: Setting) -> None:
    steps, result = setting.run(setting.job(FULL), paused=Event())
    rest, again = setting.run(replace(setting.job(FULL), resume=steps[1].resume_point))
    assert [step.preview for step in rest] == [step.preview for step in steps[2:]]
    assert again.video.data == result.video.data


@pytest.mark.parametrize(
    "error", [ValueError("too large"), RuntimeError("out of memory"), av.FFmpegError(1, "no encoder")]
)
def test_picture_that_cannot_be_made_costs_no_video(
    setting: Setting, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = setting.run(setting.job(FULL))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(denoise_module, "encode_preview", fail)
    steps, result = setting.run(setting.job(FULL))
    assert result.video.data == whole.video.data
    assert [(step.preview, step.preview_fault) for step in steps] == [(b"", str(error))] * STEPS


def test_device_that_fails_in_a_picture_ends_the_run(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.AcceleratorError("illegal address")

    monkeypatch.setattr(denoise_module, "encode_preview", fail)
    with pytest.raises(DeviceFailed):
        setting.run(setting.job(FULL))
