"""Verifies measured throughput and the estimates that follow from it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from chorus.common.v1 import video_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.scheduler.dispatch.throughput import Throughput, full_step, seconds_saved

MODEL = denoiser_pb2.ModelInfo(
    model_id="small",
    default_shape=video_pb2.VideoShape(frames=8, height=32, width=32),
    seconds_per_step=0.5,
)


def test_throughput_is_measured_per_shape() -> None:
    throughput = Throughput()
    spec = pb.GenerationSpec(model_id="small", shape=MODEL.default_shape)
    large = pb.GenerationSpec(model_id="small", shape=video_pb2.VideoShape(frames=16, height=64, width=64))
    assert throughput.seconds_per_step(spec, MODEL) == 0.5, "the denoiser's figure, until measured here"
    throughput.record(large, 4.0, 1.0, 17.0)
    assert throughput.seconds_per_step(large, MODEL) == 4.0
    assert throughput.decode_seconds(large) == 1.0
    assert throughput.seconds_per_step(spec, MODEL) == 0.5
    throughput.record(large, 2.0, 1.0, 9.0)
    assert 2.0 < throughput.seconds_per_step(large, MODEL) < 4.0


@pytest.mark.parametrize(
    ("make", "saved"),
    [
        (lambda: seconds_saved(0, 8.0, 0.0, 1.0), 0.0),
        (lambda: seconds_saved(4, 2.0, 0.5, 2.0), 5.5),
        (lambda: seconds_saved(4, 3.9, 0.5, 1.0), -0.4),
        (lambda: seconds_saved(4, 2.0, 0.5, 0.0), 0.0),
        (lambda: full_step([(0.5, 1.0), (0.1, 0.2), (0.7, 1.0), (0.9, 1.25)]), 0.6),
    ],
)
def test_seconds_saved_are_computed_from_the_runs_own_steps(make: Callable[[], float], saved: float) -> None:
    assert make() == pytest.approx(saved)
