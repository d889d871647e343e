"""Verifies that each bound of the API holds at both edges: the last valid value passes, the next does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from chorus.common.v1 import latents_pb2, plan_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.errors import ChorusError
from google.protobuf.timestamp_pb2 import Timestamp

from services.contract.schedule import shifted_schedule
from services.scheduler.api.validation import Defaults, check_page_size, check_request_id, validate_spec

pytestmark = pytest.mark.fault("number-promises")

NOW = 1_800_000_000
MODEL = denoiser_pb2.ModelInfo(
    model_id="small",
    frames=video_pb2.Bound(min=4, max=16, multiple=4),
    height=video_pb2.Bound(min=32, max=64, multiple=32),
    width=video_pb2.Bound(min=32, max=64, multiple=32),
    steps=video_pb2.Bound(min=1, max=200, multiple=1),
    default_shape=video_pb2.VideoShape(frames=8, height=32, width=32),
    default_schedule=latents_pb2.Schedule(sigmas=[1.0, 0.9375, 0.8333, 0.625, 0.0]),
    schedule_shift=5.0,
    layers=6,
)
Build = Callable[[float], pb.GenerationSpec]


def validate(spec: pb.GenerationSpec) -> list[str]:
    """Returns the names of the invalid fields."""
    defaults = Defaults("", plan_pb2.REUSE_POLICY_BALANCED, 600.0)
    try:
        validate_spec(spec, {"small": MODEL}, defaults, NOW, lambda: 0)
    except ChorusError as error:
        return [violation.field.removeprefix("spec.") for violation in error.violations]
    return []


def sizes(frames: int = 8, height: int = 32, width: int = 32) -> pb.GenerationSpec:
    return pb.GenerationSpec(
        prompt="x", shape=video_pb2.VideoShape(frames=frames, height=height, width=width)
    )


def explicit(**fields: object) -> pb.GenerationSpec:
    own = pb.ExplicitReuse(**{"reuse_steps": 1, **fields})  # type: ignore[arg-type]
    return pb.GenerationSpec(prompt="x", explicit_reuse=own)


def region(**fields: object) -> pb.GenerationSpec:
    values = {"source": 1, "context": 1, "threshold": 0.5, "budget": 0.5, **fields}
    return explicit(region_end=2, region=plan_pb2.RegionPlan(**values))  # type: ignore[arg-type]


def amplification(**fields: object) -> pb.GenerationSpec:
    values = {"form": 1, "strength": 1.0, **fields}
    return explicit(amplification=plan_pb2.Amplification(**values))  # type: ignore[arg-type]


def sigmas(*values: float) -> pb.GenerationSpec:
    return pb.GenerationSpec(prompt="x", schedule=latents_pb2.Schedule(sigmas=values))


NAN, INF = float("nan"), float("inf")
OWN = "explicit_reuse"
CASES: list[tuple[str, Build, list[float], list[float]]] = [
    ("prompt", lambda n: pb.GenerationSpec(prompt="x" * int(n)), [1, 8192], [0, 8193]),
    ("shape.frames", lambda n: sizes(frames=int(n)), [4, 16], [0, 3, 5, 17, 20, 2**32 - 1]),
    ("shape.height", lambda n: sizes(height=int(n)), [32, 64], [0, 31, 33, 65, 96]),
    ("shape.width", lambda n: sizes(width=int(n)), [32, 64], [0, 31, 33, 65, 96]),
    ("steps", lambda n: pb.GenerationSpec(prompt="x", steps=int(n)), [1, 200], [0, 201, 2**32 - 1]),
    ("schedule.sigmas", lambda n: sigmas(*shifted_schedule(int(n), 5.0)), [1, 200], [201]),
    ("schedule.sigmas", lambda s: sigmas(s, 0.0), [1e-300, 1.0], [0.0, -1.0, 1.0000001, NAN, INF]),
    ("schedule.sigmas", lambda s: sigmas(1.0, s), [0.0], [1e-300, -1e-300, NAN]),
    ("seed", lambda n: pb.GenerationSpec(prompt="x", seed=int(n)), [0, 2**32, 2**64 - 1], []),
    (f"{OWN}.reuse_steps", lambda n: explicit(reuse_steps=int(n)), [1, 3], [0, 4, 2**32 - 1]),
    (f"{OWN}.region_end", lambda n: explicit(reuse_steps=2, region_end=int(n)), [0, 2, 4], [1, 5]),
    (f"{OWN}.min_score", lambda x: explicit(min_score=x), [-1.0, 1.0], [-1.001, 1.001, NAN, INF]),
    (f"{OWN}.region.threshold", lambda x: region(threshold=x), [0.0, 1.0], [-0.001, 1.001, NAN, INF]),
    (f"{OWN}.region.budget", lambda x: region(budget=x), [0.0, 1.0], [-0.001, 1.001, NAN]),
    (f"{OWN}.region.dilation", lambda n: region(dilation=int(n)), [0, 8], [9]),
    (f"{OWN}.region.source", lambda n: region(source=int(n)), [1, 3], [0, 4]),
    (f"{OWN}.region.context", lambda n: region(context=int(n)), [1, 2], [0, 3]),
    (f"{OWN}.amplification.form", lambda n: amplification(form=int(n)), [1, 3], [0, 4]),
    (f"{OWN}.amplification.strength", lambda x: amplification(strength=x), [0.0, 4.0], [-0.1, 4.1, NAN, INF]),
    (f"{OWN}.amplification.end_step", lambda n: amplification(end_step=int(n)), [0, 2, 4], [1, 5]),
    (f"{OWN}.amplification.first_layer", lambda n: amplification(first_layer=int(n)), [0, 5], [6]),
    (
        "deadline",
        lambda s: pb.GenerationSpec(prompt="x", deadline=Timestamp(seconds=NOW + int(s))),
        [1, 86_400],
        [0, 86_401, -1],
    ),
    ("reuse", lambda n: pb.GenerationSpec(prompt="x", reuse=int(n)), [0, 4], [5]),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(("field", "build", "valid", "invalid"), CASES, ids=[case[0] for case in CASES])
def test_bound_of_a_request_holds_at_both_edges(
    field: str, build: Build, valid: list[float], invalid: list[float]
) -> None:
    for value in valid:
        assert validate(build(value)) == [], value
    for value in invalid:
        assert field in validate(build(value)), value


def test_request_id_holds_at_both_edges() -> None:
    for valid in ("a", "A-z_0.9", "x" * 128):
        assert not check_request_id(valid)
    for invalid in ("", "x" * 129, "a b", "é", "a\n"):
        assert check_request_id(invalid)


def test_page_size_holds_at_both_edges() -> None:
    assert (check_page_size(0), check_page_size(1), check_page_size(200)) == (50, 1, 200)
    for invalid in (201, 2**32 - 1):
        with pytest.raises(ChorusError, match="at most 200"):
            check_page_size(invalid)
