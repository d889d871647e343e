"""Verifies the mapping between the API and generations: lengths, names of fields, plans, progress, ranges."""

from __future__ import annotations

import re
from typing import Any

import pytest
from chorus.common.v1 import plan_pb2, video_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_client import Generation, Model, Range
from chorus_rpc import errors
from chorus_rpc.errors import Violation
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.errors import ApiError
from services.gateway.videos.fields import CreateFields, RemixFields, parse_fields
from services.gateway.videos.identifiers import find_generation_id, format_video_id
from services.gateway.videos.mapping import (
    build_remix,
    build_submission,
    choose_frames,
    format_seconds,
    name_field,
    translate_error,
)
from services.gateway.videos.progress import (
    choose_poll_milliseconds,
    count_progress,
    estimate_eta,
    find_status,
)
from services.gateway.videos.ranges import OutOfRange, matches_etag, parse_range
from services.gateway.videos.video_object import build_video

BOUND = video_pb2.Bound(min=8, max=64, multiple=8)
MODEL = Model.from_proto(
    pb.Model(
        model_id="small",
        frames=BOUND,
        height=BOUND,
        width=BOUND,
        steps=video_pb2.Bound(min=1, max=50, multiple=1),
        default_shape=video_pb2.VideoShape(frames=16, height=32, width=48),
        frames_per_second=8,
        seconds_per_step=0.5,
    )
)


def make(state: str = "RUNNING", total: int = 4, reuse: int = 0, **fields: Any) -> Generation:
    message = pb.Generation(
        generation_id="g", state=pb.GenerationState.Value(f"GENERATION_STATE_{state}"), **fields
    )
    message.create_time.FromSeconds(1_800_000_000)
    if total:
        message.plan.CopyFrom(plan_pb2.Plan(total_steps=total, reuse_steps=reuse))
    return Generation.from_proto(message)


def refuse(**fields: object) -> ApiError:
    with pytest.raises(ApiError) as refused:
        build_submission(parse_fields(CreateFields, {"prompt": "a", **fields}), [MODEL], None)
    return refused.value


@given(
    seconds=st.integers(1, 3_600),
    fps=st.floats(0.5, 240),
    low=st.integers(1, 100),
    multiple=st.integers(0, 16),
    count=st.integers(0, 50),
)
def test_length_is_valid_and_no_other_one_is_nearer(
    seconds: int, fps: float, low: int, multiple: int, count: int
) -> None:
    step = max(multiple, 1)
    frames = choose_frames(seconds, fps, Range(low, low + count * step, multiple))
    valid = range(low, low + count * step + 1, step)
    assert frames in valid
    assert abs(frames - seconds * fps) <= min(abs(each - seconds * fps) for each in valid) + 1e-6


def test_shape_is_completed_by_the_models() -> None:
    for fields, shape in (
        ({}, None),
        ({"seconds": "4"}, (32, 32, 48)),
        ({"size": "64x16"}, (16, 16, 64)),
        ({"width": 64, "height": 16, "num_frames": 24}, (24, 16, 64)),
        ({"seconds": 3, "num_frames": 24, "fps": 8}, (24, 32, 48)),
    ):
        submission = build_submission(parse_fields(CreateFields, {"prompt": "a", **fields}), [MODEL], None)
        options = submission.options
        found = (options.get("frames"), options.get("height"), options.get("width"))
        assert found == (shape or (None, None, None))


def test_unknown_frame_rate_is_no_guess() -> None:
    model = Model.from_proto(pb.Model(model_id="small", frames=BOUND))
    for fields in ({"seconds": 4}, {"fps": 24}):
        with pytest.raises(ApiError) as refused:
            build_submission(parse_fields(CreateFields, {"prompt": "a", **fields}), [model], None)
        assert refused.value.param == next(iter(fields))


def test_scales_of_guidance_are_accepted_at_one_only() -> None:
    for name in ("guidance_scale", "guidance_scale_2", "true_cfg_scale"):
        build_submission(parse_fields(CreateFields, {"prompt": "a", name: 1}), [MODEL], None)
        assert refuse(**{name: 2}).faults[0].code == "unsupported_parameter"


def test_null_counts_as_absent() -> None:
    fields = parse_fields(CreateFields, {"prompt": "a", "seed": None, "lora": None, "negative_prompt": ""})
    assert fields == CreateFields(prompt="a")


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        ("depth:1", "chorus.plan"),
        ({"reuse_steps": 0}, "chorus.plan.reuse_steps"),
        ({"reuse_steps": 1, "budget": "wide"}, "chorus.plan.budget"),
        ({"reuse_steps": [1]}, "chorus.plan.reuse_steps"),
        ({}, "chorus.plan.reuse_steps"),
    ],
)
def test_fault_of_a_plan_is_named(plan: object, named: str) -> None:
    assert refuse(chorus={"plan": plan}).param == named


def test_names_of_the_contract_become_those_of_the_request() -> None:
    plain = parse_fields(CreateFields, {"prompt": "a", "user": "u"})
    counted = parse_fields(CreateFields, {"prompt": "a", "num_frames": 8})
    named = parse_fields(CreateFields, {"prompt": "a", "chorus": {"donor": "video_x"}})
    for field, fields, expected in (
        ("spec.prompt", plain, "prompt"),
        ("spec.shape.frames", plain, "seconds"),
        ("spec.shape.frames", counted, "num_frames"),
        ("spec.shape.height", plain, "size"),
        ('spec.labels["user"]', plain, "user"),
        ('spec.labels["user"]', counted, "metadata.user"),
        ("labels['x y']", plain, "metadata.x y"),
        ("spec.explicit_reuse.region_end", plain, "chorus.plan.region_end"),
        ("spec.donor_generation_id", named, "chorus.donor"),
        ("spec.donor_generation_id", RemixFields(prompt="a"), "video"),
        ("request_id", plain, "Idempotency-Key"),
        ("something", plain, "something"),
    ):
        assert name_field(field, fields) == expected


def test_every_field_of_the_contract_has_a_name_in_the_request() -> None:
    """A field of the specification that is neither stated by the gateway nor deprecated needs no name."""
    unused = {"schedule", "retention", "no_store", "deadline"}
    plain = parse_fields(CreateFields, {"prompt": "a"})
    for field in pb.GenerationSpec.DESCRIPTOR.fields:
        if field.name not in unused:
            assert not name_field(f"spec.{field.name}", plain).startswith("spec.") or field.name == "shape"


def test_refusal_of_a_limit_keeps_its_delay() -> None:
    plain = parse_fields(CreateFields, {"prompt": "a"})
    full = errors.ChorusError(errors.QUEUE_FULL, "full", retry_after=3)
    found = translate_error(full, plain)
    assert (found.status, found.retry_after) == (429, 3)
    reused = errors.invalid_fields([Violation("request_id", "was used")], errors.REQUEST_ID_REUSED)
    found = translate_error(reused, plain)
    assert (found.status, found.param) == (409, "Idempotency-Key")


def test_remix_takes_all_but_the_prompt_from_its_source() -> None:
    source = make("SUCCEEDED")
    source.proto.spec.shape.CopyFrom(video_pb2.VideoShape(frames=24, height=16, width=64))
    source.proto.spec.schedule.sigmas.extend((1.0, 0.5, 0.0))
    submission = build_remix(RemixFields(prompt="b"), source, "key")
    assert submission.options == {
        "request_id": "key",
        "model": "",
        "frames": 24,
        "height": 16,
        "width": 64,
        "sigmas": [1.0, 0.5, 0.0],
        "donor": "g",
    }
    fields = parse_fields(RemixFields, {"prompt": "b", "chorus": {"donor": "video_other"}})
    with pytest.raises(ApiError):
        build_remix(fields, source, None)


@given(
    total=st.integers(1, 200),
    done=st.integers(0, 200),
    state=st.sampled_from(("QUEUED", "WAITING", "RUNNING", "FAILED", "CANCELLED", "SUCCEEDED")),
)
def test_progress_agrees_with_the_status(total: int, done: int, state: str) -> None:
    generation = make(state, total, steps_completed=min(done, total))
    status, progress = find_status(generation), count_progress(generation)
    assert 0 <= progress <= 100
    assert (progress == 100) == (status == "completed")
    if status == "queued":
        assert progress == 0
    if status == "in_progress" and generation.steps_completed:
        assert 1 <= progress <= 95
    assert progress <= count_progress(make(state, total, steps_completed=min(done + 1, total)))


def test_generation_that_was_interrupted_stays_in_progress() -> None:
    for state in ("QUEUED", "WAITING"):
        assert find_status(make(state)) == "queued"
        assert find_status(make(state, steps_completed=2)) == "in_progress"


def test_remaining_time_goes_on_at_the_pace_of_the_run() -> None:
    timings = pb.Timings(running_seconds=3.0)
    assert estimate_eta(make(steps_completed=3, steps_run=2, reuse=1, timings=timings)) == pytest.approx(1.5)
    assert estimate_eta(make(reuse=2)) is None
    assert estimate_eta(make(reuse=2), MODEL) == pytest.approx(1.0)
    assert estimate_eta(make("QUEUED")) is None
    assert estimate_eta(make("SUCCEEDED")) == 0
    assert [choose_poll_milliseconds(eta, 0) for eta in (None, 0.0, 4.0, 1_000.0)] == [
        1_000,
        250,
        2_000,
        10_000,
    ]
    assert choose_poll_milliseconds(None, 3) == 3_000


def test_object_names_the_decision_that_was_carried_out() -> None:
    donor = plan_pb2.DonorRef(generation_id="d", score=0.9)
    planned = make(reuse=2)
    planned.proto.plan.donor.CopyFrom(donor)
    running = build_video(Generation.from_proto(planned.proto), 8)
    assert (running.chorus.decision, running.chorus.donor_id) == ("hit", "video_d")
    planned.proto.state = pb.GENERATION_STATE_SUCCEEDED
    lost = build_video(Generation.from_proto(planned.proto), 8)
    assert (lost.chorus.decision, lost.chorus.donor_id) == ("miss", None)
    planned.proto.donor.CopyFrom(donor)
    planned.proto.plan.reuse_steps = 4
    assert build_video(Generation.from_proto(planned.proto), 8).chorus.decision == "exact"


def test_length_is_text_without_needless_digits() -> None:
    found = [format_seconds(frames, fps) for frames, fps in ((32, 8), (16, 12), (81, 16), (1, 0))]
    assert found == ["4", "1.33", "5.06", "0"]


@given(st.text(max_size=24), st.integers(1, 1_000))
def test_any_range_is_within_the_file(header: str, size: int) -> None:
    try:
        part = parse_range(header, size)
    except OutOfRange:
        return
    if part is not None:
        assert 0 <= part.offset < part.offset + part.length <= size


@given(st.integers(0, 2_000), st.integers(0, 2_000), st.integers(1, 1_000))
def test_range_selects_what_a_slice_selects(first: int, last: int, size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    if first >= size:
        if last >= first:
            with pytest.raises(OutOfRange):
                parse_range(f"bytes={first}-{last}", size)
        return
    part = parse_range(f"bytes={first}-{last}", size)
    if last < first:
        assert part is None
    else:
        assert part is not None
        assert data[part.offset :][: part.length] == data[first : last + 1]


def test_tags_are_compared_weakly() -> None:
    assert matches_etag('W/"a", "b"', '"a"')
    assert matches_etag("*", '"a"')
    assert not matches_etag('"ab"', '"a"')
    assert not matches_etag(None, '"a"')


@given(st.text(max_size=40))
def test_only_ids_of_videos_are_read(text: str) -> None:
    found = find_generation_id(text)
    assert found is None or format_video_id(found) == text
    assert (found is not None) == (re.fullmatch(r"video_[A-Za-z0-9._-]+", text) is not None)
