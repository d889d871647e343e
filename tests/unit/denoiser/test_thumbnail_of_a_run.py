"""Verifies that a run has a thumbnail, and that one which cannot be encoded costs no video."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from chorus.common.v1 import plan_pb2

from services.denoiser import denoise as denoise_module
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.denoise import Result, denoise
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.request import DenoiseJob
from tests.tiny_model import TEXT_DIM, save_tiny_model


@pytest.mark.parametrize("error", [ValueError("too large"), av.FFmpegError(1, "no encoder")])
def test_thumbnail_that_cannot_be_encoded_costs_no_video(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LoadedModel.load(save_tiny_model(tmp_path))
    predictor = Predictor.create(model, lambda each: EagerBackend(each.transformer))

    def run() -> Result:
        states = np.zeros((3, TEXT_DIM), np.float32)
        sigmas = model.spec.schedule.sigmas
        plan = plan_pb2.Plan(total_steps=len(sigmas) - 1)
        job = DenoiseJob("g", model, (12, 2, 8, 8), sigmas, 7, states, plan, "r", 1, None)
        *_, result = denoise(predictor, job, None, keep=False, parent="")
        assert isinstance(result, Result)
        return result

    whole = run().video
    assert whole.thumbnail is not None

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(denoise_module, "encode_thumbnail", fail)
    video = run().video
    assert video.thumbnail is None
    assert video.data == whole.data
