"""Verifies that each invalid field is named with its bound, and that an accepted spec is complete."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from chorus.common.v1 import errors_pb2, latents_pb2, plan_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.errors import ChorusError, Violation
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.contract.schedule import shifted_schedule
from services.scheduler.api.validation import Defaults, check_page_size, check_request_id, validate_spec

NOW = 1_800_000_000.0
MODEL = denoiser_pb2.ModelInfo(
    model_id="small",
    weights_digest="ab" * 32,
    model_digest="cd" * 32,
    conditioning_encoder_id="enc",
    codec=denoiser_pb2.CodecInfo(codec_id="c", latent_channels=12, temporal_factor=1, spatial_factor=2),
    latent_dtype=latents_pb2.D_TYPE_FLOAT32,
    frames=video_pb2.Bound(min=4, max=16, multiple=4),
    height=video_pb2.Bound(min=32, max=64, multiple=32),
    width=video_pb2.Bound(min=32, max=64, multiple=32),
    steps=video_pb2.Bound(min=2, max=50, multiple=1),
    default_shape=video_pb2.VideoShape(frames=8, height=32, width=32),
    default_schedule=latents_pb2.Schedule(sigmas=[1.0, 0.9375, 0.8333, 0.625, 0.0]),
    schedule_shift=5.0,
    seconds_per_step=0.5,
)
DEFAULTS = Defaults("", plan_pb2.REUSE_POLICY_BALANCED, 600.0)


def accepted(spec: pb.GenerationSpec) -> pb.GenerationSpec:
    return validate_spec(spec, {"small": MODEL}, DEFAULTS, NOW, lambda: 77)


def rejected(spec: pb.GenerationSpec) -> ChorusError:
    with pytest.raises(ChorusError) as caught:
        accepted(spec)
    return caught.value


def test_every_default_is_filled_in() -> None:
    spec = accepted(pb.GenerationSpec(prompt="  a red car\n"))
    assert spec.prompt == "a red car"
    assert spec.model_id == "small"
    assert spec.shape == MODEL.default_shape
    assert spec.WhichOneof("denoising") == "schedule"
    assert spec.schedule == MODEL.default_schedule
    assert spec.seed == 77
    assert spec.reuse == plan_pb2.REUSE_POLICY_BALANCED
    assert spec.deadline.seconds == NOW + 600


def test_requested_values_are_kept() -> None:
    requested = pb.GenerationSpec(
        prompt="x",
        model_id="small",
        shape=video_pb2.VideoShape(frames=12, height=64, width=32),
        schedule=latents_pb2.Schedule(sigmas=[1.0, 0.5, 0.0]),
        seed=0,
        reuse=plan_pb2.REUSE_POLICY_OFF,
        priority=pb.PRIORITY_LOW,
        no_store=True,
        deadline=Timestamp(seconds=int(NOW) + 5, nanos=7),
    )
    assert accepted(requested) == requested


@given(st.integers(2, 50))
def test_steps_become_the_shifted_schedule(steps: int) -> None:
    spec = accepted(pb.GenerationSpec(prompt="x", steps=steps))
    assert list(spec.schedule.sigmas) == shifted_schedule(steps, 5.0)


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (pb.GenerationSpec(), "spec.prompt", "1 to 8192"),
        (pb.GenerationSpec(prompt=" \n\t "), "spec.prompt", "not 0"),
        (pb.GenerationSpec(prompt="é" * 4097), "spec.prompt", "not 8194"),
        (
            pb.GenerationSpec(prompt="x", shape=video_pb2.VideoShape(frames=17, height=32, width=32)),
            "spec.shape.frames",
            "4 to 16 in steps of 4 for small, not 17",
        ),
        (
            pb.GenerationSpec(prompt="x", shape=video_pb2.VideoShape(frames=8, width=32)),
            "spec.shape.height",
            "32 to 64 in steps of 32 for small, not 0",
        ),
        (
            pb.GenerationSpec(prompt="x", shape=video_pb2.VideoShape(frames=8, height=32, width=48)),
            "spec.shape.width",
            "not 48",
        ),
        (pb.GenerationSpec(prompt="x", steps=51), "spec.steps", "2 to 50 for small, not 51"),
        (pb.GenerationSpec(prompt="x", steps=0), "spec.steps", "not 0"),
        (pb.GenerationSpec(prompt="x", steps=2**32 - 1), "spec.steps", "2 to 50"),
        (
            pb.GenerationSpec(prompt="x", schedule=latents_pb2.Schedule(sigmas=[1.0, 0.5, 0.6, 0.0])),
            "spec.schedule.sigmas",
            "decreasing",
        ),
        (
            pb.GenerationSpec(prompt="x", schedule=latents_pb2.Schedule(sigmas=[1.0, float("nan"), 0.0])),
            "spec.schedule.sigmas",
            "decreasing",
        ),
        (
            pb.GenerationSpec(prompt="x", schedule=latents_pb2.Schedule()),
            "spec.schedule.sigmas",
            "2 to 201 values",
        ),
        (
            pb.GenerationSpec(prompt="x", schedule=latents_pb2.Schedule(sigmas=[1.0, 0.0])),
            "spec.schedule.sigmas",
            "the number of steps must be 2 to 50",
        ),
        (
            pb.GenerationSpec(prompt="x", deadline=Timestamp(seconds=int(NOW) - 60)),
            "spec.deadline",
            "60.000 s ago",
        ),
        (
            pb.GenerationSpec(prompt="x", deadline=Timestamp(seconds=int(NOW))),
            "spec.deadline",
            "in the future",
        ),
        (
            pb.GenerationSpec(prompt="x", deadline=Timestamp(seconds=int(NOW) + 86_401)),
            "spec.deadline",
            "at most 24 hours",
        ),
        (pb.GenerationSpec(prompt="x", deadline=Timestamp(seconds=2**62)), "spec.deadline", "9999"),
        (pb.GenerationSpec(prompt="x", deadline=Timestamp(nanos=-5)), "spec.deadline", "9999"),
        (pb.GenerationSpec(prompt="x", timeout=Duration()), "spec.timeout", "above 0, at most 24 hours"),
        (pb.GenerationSpec(prompt="x", timeout=Duration(seconds=-60)), "spec.timeout", "not -60 s"),
        (
            pb.GenerationSpec(prompt="x", timeout=Duration(seconds=86_400, nanos=1)),
            "spec.timeout",
            "24 hours",
        ),
        (pb.GenerationSpec(prompt="x", timeout=Duration(seconds=2**62)), "spec.timeout", "24 hours"),
        (pb.GenerationSpec(prompt="x", timeout=Duration(seconds=1, nanos=-1)), "spec.timeout", "one sign"),
        (pb.GenerationSpec(prompt="x", timeout=Duration(nanos=2**30)), "spec.timeout", "below 10^9"),
        (pb.GenerationSpec(prompt="x", reuse=99), "spec.reuse", "REUSE_POLICY_SAFE"),  # type: ignore[arg-type]
        (pb.GenerationSpec(prompt="x", priority=9), "spec.priority", "PRIORITY_HIGH"),  # type: ignore[arg-type]
    ],
)
def test_field_out_of_bounds_is_named_with_its_bound(spec: pb.GenerationSpec, field: str, words: str) -> None:
    error = rejected(spec)
    assert error.reason == errors_pb2.ERROR_REASON_INVALID_FIELD
    [violation] = [v for v in error.violations if v.field == field]
    assert words in violation.description


@pytest.mark.fault("deadlines-keepalive")
@pytest.mark.parametrize("seconds", [1e-9, 0.25, 60, 86_400])
def test_timeout_counts_from_the_servers_time(seconds: float) -> None:
    timeout = Duration()
    timeout.FromNanoseconds(round(seconds * 1e9))
    spec = accepted(pb.GenerationSpec(prompt="x", timeout=timeout))
    assert spec.deadline.ToNanoseconds() == int(NOW) * 10**9 + timeout.ToNanoseconds()
    assert not spec.HasField("timeout"), "an accepted spec can be submitted again"


def test_unknown_model_error_lists_the_available_models() -> None:
    error = rejected(pb.GenerationSpec(prompt="", model_id="huge"))
    assert error.reason == errors_pb2.ERROR_REASON_UNKNOWN_MODEL
    assert error.metadata["available"] == "small"
    assert [v.field for v in error.violations] == ["spec.prompt", "spec.model_id"]


def test_all_violations_are_reported_at_once() -> None:
    error = rejected(
        pb.GenerationSpec(
            shape=video_pb2.VideoShape(frames=1, height=1, width=1), steps=1, deadline=Timestamp(seconds=1)
        )
    )
    assert {v.field for v in error.violations} == {
        "spec.prompt", "spec.deadline", "spec.steps",
        "spec.shape.frames", "spec.shape.height", "spec.shape.width",
    }  # fmt: skip


@given(st.text(max_size=40), st.integers(0, 2**32 - 1), st.lists(st.floats(width=32), max_size=6))
def test_any_spec_is_accepted_unchanged_or_rejected_with_a_violation(
    prompt: str, size: int, sigmas: list[float]
) -> None:
    spec = pb.GenerationSpec(
        prompt=prompt.encode("utf-8", "ignore").decode(),
        shape=video_pb2.VideoShape(frames=size, height=size, width=size),
        schedule=latents_pb2.Schedule(sigmas=sigmas),
    )
    result: pb.GenerationSpec | None = None
    violations: Sequence[Violation] = ()
    try:
        result = accepted(spec)
    except ChorusError as error:
        violations = error.violations
    assert (result is None) == bool(violations)
    if result is not None:
        assert result.prompt
        assert list(result.schedule.sigmas) == sigmas


@pytest.mark.parametrize("request_id", ["", "a b", "ä", "x" * 129, "a/b", "a\n"])
def test_malformed_request_ids_are_rejected(request_id: str) -> None:
    assert [v.field for v in check_request_id(request_id)] == ["request_id"]


@given(st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True))
def test_well_formed_request_ids_are_accepted(request_id: str) -> None:
    assert check_request_id(request_id) == []


def test_page_sizes_have_a_default_and_a_maximum() -> None:
    assert [check_page_size(n) for n in (0, 1, 200)] == [50, 1, 200]
    with pytest.raises(ChorusError) as caught:
        check_page_size(201)
    assert "at most 200" in caught.value.message
