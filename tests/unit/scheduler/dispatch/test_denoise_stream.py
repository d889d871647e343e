"""Verifies how the replies of a denoise stream become events of the job."""

from __future__ import annotations

import hashlib

import pytest
from chorus.common.v1 import errors_pb2, latents_pb2, plan_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc import errors
from chorus_rpc.chunks import BlobFault
from chorus_rpc.limits import MAX_PREVIEW_BYTES

from services.scheduler.dispatch.denoise_stream import DenoiseStream

VIDEO = b"a video"
COMPLETED = denoiser_pb2.DenoiseResponse(completed=denoiser_pb2.Completed(steps_run=2))


def make_stream(max_video_bytes: int = 1_000) -> DenoiseStream:
    return DenoiseStream(
        total_steps=4, attempt=2, decode_seconds=0.5, max_video_bytes=max_video_bytes, denoiser="d:1"
    )


def header(data: bytes) -> denoiser_pb2.DenoiseResponse:
    info = video_pb2.VideoInfo(size_bytes=len(data), digest=hashlib.sha256(data).hexdigest())
    return denoiser_pb2.DenoiseResponse(video_header=info)


def test_started_reports_the_donor_and_the_reused_steps() -> None:
    stream = make_stream()
    assert (stream.began, stream.reuse_steps) == (False, 0)
    started = denoiser_pb2.Started(
        reuse_steps=3,
        total_steps=4,
        fetch_seconds=0.25,
        donor=plan_pb2.DonorRef(entry_id="e"),
        host_adapter="host",
    )
    [event] = stream.convert(denoiser_pb2.DenoiseResponse(started=started))
    assert (event.started.reuse_steps, event.started.attempt, event.started.donor.entry_id) == (3, 2, "e")
    assert (event.started.host_adapter, event.started.denoiser) == ("host", "d:1")
    assert (stream.began, stream.reuse_steps, stream.fetch_seconds) == (True, 3, 0.25)


def test_donor_that_could_not_be_used_is_a_warning_about_the_cache() -> None:
    degraded = errors_pb2.JobError(message="the blob is corrupt")
    reply = denoiser_pb2.DenoiseResponse(started=denoiser_pb2.Started(total_steps=4, degraded=degraded))
    started, warning = make_stream().convert(reply)
    assert not started.started.HasField("donor")
    assert warning.warning.warning.message == "the blob is corrupt"
    assert warning.warning.warning.metadata["service"] == "cache"


def test_steps_carry_an_estimate_from_their_mean_and_the_decoding() -> None:
    stream = make_stream()
    etas = []
    for index, seconds in ((1, 1.0), (2, 3.0), (4, 2.0)):
        step = denoiser_pb2.StepCompleted(
            step=latents_pb2.StepRef(index=index), seconds=seconds, computed_share=1.0
        )
        [event] = stream.convert(denoiser_pb2.DenoiseResponse(step_completed=step))
        assert event.step_completed.total_steps == 4
        etas.append(event.step_completed.eta_seconds)
    assert etas == pytest.approx([3 * 1.0 + 0.5, 2 * 2.0 + 0.5, 0.5])
    assert stream.steps == [(1.0, 1.0), (3.0, 1.0), (2.0, 1.0)]


def test_video_is_assembled_from_its_chunks() -> None:
    stream = make_stream()
    chunks = [denoiser_pb2.DenoiseResponse(video_chunk=part) for part in (VIDEO[:3], VIDEO[3:])]
    for reply in (header(VIDEO), *chunks, COMPLETED):
        assert stream.convert(reply) == []
    info, data = stream.finish_video()
    assert (data, info.size_bytes) == (VIDEO, len(VIDEO))
    assert stream.completed is not None
    assert stream.completed.steps_run == 2


def test_video_out_of_order_or_out_of_bounds_is_rejected() -> None:
    chunk = denoiser_pb2.DenoiseResponse(video_chunk=VIDEO)
    with pytest.raises(BlobFault, match="before the header"):
        make_stream().convert(chunk)
    with pytest.raises(BlobFault, match="before any video"):
        make_stream().finish_video()
    with pytest.raises(BlobFault, match="CHORUS_SCHEDULER_MAX_VIDEO_BYTES"):
        make_stream(max_video_bytes=3).convert(header(VIDEO))
    incomplete = make_stream()
    incomplete.convert(header(VIDEO + b"!"))
    incomplete.convert(chunk)
    with pytest.raises(BlobFault):
        incomplete.finish_video()


def make_step(index: int, preview: bytes = b"", fault: str = "") -> denoiser_pb2.DenoiseResponse:
    step = denoiser_pb2.StepCompleted(
        step=latents_pb2.StepRef(index=index), seconds=1.0, preview=preview, preview_fault=fault
    )
    return denoiser_pb2.DenoiseResponse(step_completed=step)


def make_asking_stream() -> DenoiseStream:
    return DenoiseStream(4, 1, 0.5, 1_000, step_previews=True)


def test_steps_carry_their_pictures() -> None:
    [event] = make_asking_stream().convert(make_step(1, b"x" * MAX_PREVIEW_BYTES))
    assert len(event.step_completed.preview) == MAX_PREVIEW_BYTES


@pytest.mark.parametrize(
    ("step", "cause"),
    [
        (make_step(1, fault="out of memory"), "out of memory"),
        (make_step(1), "the denoiser sent none"),
        (make_step(1, b"x" * (MAX_PREVIEW_BYTES + 1)), f"it has {MAX_PREVIEW_BYTES + 1} bytes"),
    ],
    ids=["fault", "old-denoiser", "too-large"],
)
def test_first_picture_that_is_missing_is_a_warning(step: denoiser_pb2.DenoiseResponse, cause: str) -> None:
    stream = make_asking_stream()
    completed, warned = stream.convert(step)
    assert completed.step_completed.preview == b""
    warning = warned.warning.warning
    assert (warning.reason, warning.metadata["field"]) == (errors.FIELD_IGNORED, "spec.step_previews")
    assert "step 1 has no picture" in warning.message
    assert cause in warning.message
    assert len(stream.convert(make_step(2))) == 1, "one warning is enough"


def test_nothing_is_missed_that_was_not_asked_for() -> None:
    assert len(make_stream().convert(make_step(1))) == 1
