"""Tests of the basic path: a prompt yields a video, and a similar second prompt runs fewer steps."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import grpc.aio
import pytest
from chorus.common.v1 import latents_pb2, plan_pb2, video_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.errors import from_rpc_error
from google.protobuf.timestamp_pb2 import Timestamp

from tests.e2e.calls import get, kinds, submit, video, watch_to_end
from tests.processes import ROOT
from tests.stack import Stack


async def test_edited_request_reuses_the_first_ones_latents(scheduler: Any, stack: Stack) -> None:
    prompt = "a large red circle moving left on a black background"
    first = await submit(scheduler, prompt, seed=1)
    events = await watch_to_end(scheduler, first.generation_id)
    assert kinds(events)[-1] == "succeeded", stack.logs()
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))
    assert kinds(events).count("step_completed") == 4
    missed = await get(scheduler, first.generation_id)
    assert (missed.steps_run, missed.HasField("donor")) == (4, False)
    assert missed.plan.reasons[0].code == plan_pb2.PLAN_REASON_CODE_NO_DONOR

    second = await submit(scheduler, prompt.replace("red", "purple"), seed=1)
    events = await watch_to_end(scheduler, second.generation_id)
    assert kinds(events)[-1] == "succeeded", stack.logs()
    hit = await get(scheduler, second.generation_id)
    assert hit.donor.generation_id == first.generation_id
    assert 0.5 < hit.donor.score < 1
    assert hit.plan.reuse_steps >= 1
    drafts = int(hit.plan.draft_step > 0)
    assert hit.steps_run == 4 - hit.plan.reuse_steps + drafts == kinds(events).count("step_completed")
    assert not hit.warnings

    header, data = await video(scheduler, second.generation_id)
    assert header.header.size_bytes == len(data)
    assert header.header.digest == hashlib.sha256(data).hexdigest()
    with av.open(io.BytesIO(data), "r") as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert sum(1 for _ in container.decode(video=0)) == header.header.frames


async def test_reuse_off_computes_every_step_and_is_deterministic(scheduler: Any) -> None:
    digests = set()
    for _ in range(2):
        job = await submit(
            scheduler, "a small blue square moving up", seed=7, reuse=plan_pb2.REUSE_POLICY_OFF, no_store=True
        )
        await watch_to_end(scheduler, job.generation_id)
        ended = await get(scheduler, job.generation_id)
        assert ended.steps_run == 4
        digests.add(ended.video.digest)
    assert len(digests) == 1


async def test_repeated_request_id_returns_the_first_generation(scheduler: Any) -> None:
    first = await submit(scheduler, "a green triangle", request_id="twice", seed=3)
    again = await submit(scheduler, "a green triangle", request_id="twice", seed=3)
    assert first.generation_id == again.generation_id
    deadline = Timestamp()
    deadline.GetCurrentTime()
    deadline.seconds += 600
    with_deadline = await submit(scheduler, "a green triangle", request_id="twice", seed=3, deadline=deadline)
    assert with_deadline.generation_id == first.generation_id
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await submit(scheduler, "a green square", request_id="twice", seed=3)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert from_rpc_error(caught.value, "scheduler").violations
    await watch_to_end(scheduler, first.generation_id)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"prompt": ""}, "spec.prompt"),
        ({"prompt": "   \n"}, "spec.prompt"),
        ({"prompt": "x" * 8193}, "spec.prompt"),
        ({"prompt": "x", "model_id": "no-such-model"}, "spec.model_id"),
        (
            {"prompt": "x", "shape": video_pb2.VideoShape(frames=9999, height=32, width=32)},
            "spec.shape.frames",
        ),
        ({"prompt": "x", "shape": video_pb2.VideoShape(frames=8, height=31, width=32)}, "spec.shape.height"),
        ({"prompt": "x", "steps": 100000}, "spec.steps"),
        (
            {"prompt": "x", "schedule": latents_pb2.Schedule(sigmas=[1.0, 0.5, 0.7, 0.0])},
            "spec.schedule.sigmas",
        ),
        ({"prompt": "x", "deadline": Timestamp(seconds=int(time.time()) - 60)}, "spec.deadline"),
    ],
)
async def test_invalid_input_names_the_field_and_creates_no_generation(
    scheduler: Any, spec: dict[str, Any], field: str
) -> None:
    before = await scheduler.ListGenerations(pb.ListGenerationsRequest(), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await submit(scheduler, **spec)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = from_rpc_error(caught.value, "scheduler").violations
    assert field in [v.field for v in violations]
    assert all(v.description for v in violations)
    after = await scheduler.ListGenerations(pb.ListGenerationsRequest(), timeout=10)
    assert [g.generation_id for g in after.generations] == [g.generation_id for g in before.generations]


def test_client_needs_only_reflection(stack: Stack, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples/reflection_client.py"),
            stack.target,
            "a white circle moving right",
            str(out),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "chorus.scheduler.v1.SchedulerService" in done.stdout
    with av.open(str(out), "r") as container:
        assert sum(1 for _ in container.decode(video=0)) >= 8
