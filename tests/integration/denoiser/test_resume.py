"""Tests of the denoiser over gRPC: runs that are paused, and runs that continue from a resume point."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from chorus.common.v1 import plan_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc import errors

from tests.integration.denoiser.calls import (
    SECONDS,
    FakeCache,
    failure,
    latents,
    long_request,
    request,
    reusing,
)

MAX_BYTES = 1 << 20


def asking(what: denoiser_pb2.DenoiseRequest, point: bytes = b"") -> denoiser_pb2.DenoiseRequest:
    """Returns the request with a wish for resume points, continuing from one if it is given."""
    changed = denoiser_pb2.DenoiseRequest()
    changed.CopyFrom(what)
    changed.max_resume_point_bytes, changed.resume_point = MAX_BYTES, point
    return changed


async def test_points_above_the_bound_are_not_sent(stub: Any) -> None:
    what = asking(request(admit=False))
    [size] = {len(point) for point in points(await collect(stub, what))}
    what.max_resume_point_bytes = size - 1
    assert not points(await collect(stub, what))


async def collect(stub: Any, what: denoiser_pb2.DenoiseRequest) -> list[denoiser_pb2.DenoiseResponse]:
    return [event async for event in stub.Denoise(what, timeout=SECONDS)]


def kinds(events: list[denoiser_pb2.DenoiseResponse]) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]


def points(events: list[denoiser_pb2.DenoiseResponse]) -> list[bytes]:
    return [event.step_completed.resume_point for event in events if event.step_completed.resume_point]


def video(events: list[denoiser_pb2.DenoiseResponse]) -> bytes:
    return b"".join(event.video_chunk for event in events)


async def pause(stub: Any, generation_id: str, **options: Any) -> None:
    await stub.PauseRun(denoiser_pb2.PauseRunRequest(generation_id=generation_id), timeout=SECONDS, **options)


async def not_paused(stub: Any, generation_id: str, **options: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pause(stub, generation_id, **options)
    assert errors.from_rpc_error(caught.value, "denoiser").reason == errors.NOT_FOUND


async def is_paused(stub: Any, generation_id: str) -> bool:
    """Pauses a run. Returns whether the service has such a run."""
    try:
        await pause(stub, generation_id)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return False
        raise
    return True


async def test_each_step_but_the_last_has_its_point_if_requested(stub: Any) -> None:
    events = await collect(stub, asking(request(admit=False)))
    steps = [event.step_completed for event in events if event.HasField("step_completed")]
    assert [bool(step.resume_point) for step in steps] == [True, True, True, False]
    assert not points(await collect(stub, request(admit=False)))


async def test_run_continues_from_any_point_to_the_same_video(stub: Any, cache: FakeCache) -> None:
    whole = await collect(stub, asking(request()))
    [entry_id] = cache.entries
    stored = dict(latents(cache, entry_id))
    for boundary, point in enumerate(points(whole), 1):
        cache.entries.clear()
        rest = await collect(stub, asking(request(), point))
        assert (rest[0].started.resumed_step, rest[0].started.reuse_steps) == (boundary, 0)
        assert video(rest) == video(whole)
        [completed] = [event.completed for event in rest if event.WhichOneof("event") == "completed"]
        assert completed.steps_run == 4 - boundary
        # The entry holds what this run knows: the latents from the point on.
        assert latents(cache, entry_id) == {i: data for i, data in stored.items() if i >= boundary}


async def test_region_is_continued(stub: Any, cache: FakeCache) -> None:
    await collect(stub, request(seed=1))
    [entry_id] = cache.entries
    what = reusing(request(seed=2, admit=False), entry_id, 1)
    what.plan.region_end = 4
    what.plan.region.CopyFrom(
        plan_pb2.RegionPlan(
            source=plan_pb2.REGION_SOURCE_PROBE,
            threshold=0.3,
            budget=1.0,
            context=plan_pb2.REGION_CONTEXT_NONE,
        )
    )
    whole = await collect(stub, asking(what))
    found = points(whole)
    assert len(found) == 2
    for point in found:
        rest = await collect(stub, asking(what, point))
        assert rest[0].started.reuse_steps == 1
        assert video(rest) == video(whole)
    cache.entries.clear()
    lost = await collect(stub, asking(what, found[0]))
    assert (lost[0].started.resumed_step, lost[0].started.degraded.reason) == (0, errors.NOT_FOUND)
    assert video(lost) == video(await collect(stub, request(seed=2, admit=False)))


async def test_point_continues_a_run_whether_or_not_it_has_pictures(stub: Any) -> None:
    what = asking(request(admit=False))
    whole = await collect(stub, what)
    what.step_previews, what.resume_point = True, points(whole)[1]
    rest = await collect(stub, what)
    steps = [event.step_completed for event in rest if event.HasField("step_completed")]
    assert [step.preview[:2] for step in steps] == [b"\xff\xd8"] * 2  # as every JPEG begins
    assert rest[0].started.resumed_step == 2
    assert video(rest) == video(whole)


async def read_first_point(
    call: AsyncIterator[denoiser_pb2.DenoiseResponse],
) -> list[denoiser_pb2.DenoiseResponse]:
    """Reads until the first resume point. Returns the replies."""
    replies = []
    async for reply in call:
        replies.append(reply)
        if reply.step_completed.resume_point:
            return replies
    raise AssertionError("the run ended before its first resume point")


async def test_pause_ends_a_run_at_a_step_and_frees_the_device(stub: Any) -> None:
    what = asking(long_request())
    call = stub.Denoise(what, timeout=SECONDS)
    replies = await read_first_point(call)
    await pause(stub, what.generation_id)
    replies += [reply async for reply in call]
    assert kinds(replies)[-2:] == ["step_completed", "paused"]
    await not_paused(stub, what.generation_id)
    await collect(stub, request(admit=False))
    # The run goes on where it stopped.
    again = stub.Denoise(asking(what, points(replies)[-1]), timeout=SECONDS)
    continued = await read_first_point(again)
    last = replies[-2].step_completed.step.index
    assert (continued[0].started.resumed_step, continued[-1].step_completed.step.index) == (last, last + 1)
    again.cancel()


async def test_run_that_waits_for_the_device_is_paused_before_it_starts(stub: Any) -> None:
    running = stub.Denoise(long_request(), timeout=SECONDS)
    async for reply in running:
        if reply.WhichOneof("event") == "step_completed":
            break
    what = asking(request(admit=False))
    waiting = stub.Denoise(what, timeout=SECONDS)
    # The service registers the run when it accepts the call, which it does not announce.
    while not await is_paused(stub, what.generation_id):
        pass
    running.cancel()
    assert kinds([reply async for reply in waiting]) == ["started", "paused"]


async def test_only_runs_of_the_tenant_that_send_points_can_be_paused(stub: Any) -> None:
    await not_paused(stub, "unknown")
    for what, tenant in ((long_request(), "default"), (asking(long_request()), "studio")):
        call = stub.Denoise(what, timeout=SECONDS, metadata=(("chorus-tenant", tenant),))
        async for reply in call:
            if reply.WhichOneof("event") == "step_completed":
                break
        await not_paused(stub, what.generation_id)
        call.cancel()


async def test_point_of_another_request_is_rejected(stub: Any) -> None:
    [point, *_] = points(await collect(stub, asking(request(admit=False))))
    for what, message in (
        (asking(request(seed=8, admit=False), point), "another request"),
        (asking(request(admit=False), point[:-1]), "truncated"),
        (asking(request(admit=False), b"x"), "not a safetensors file"),
    ):
        error = await failure(stub, what)
        assert [violation.field for violation in error.violations] == ["resume_point"]
        assert message in error.violations[0].description
