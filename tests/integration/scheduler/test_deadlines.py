"""Verifies that the time limit of a generation is counted on the scheduler's clock alone."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from chorus.common.v1 import errors_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_client.spec import build_request
from chorus_rpc.errors import from_rpc_error
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.integration.scheduler.world import World, check_sequence, kinds

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.fault("deadlines-keepalive")]

SKEW_SECONDS = 120


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with World(tmp_path_factory.mktemp("scheduler")) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


def seconds_allowed(generation: pb.Generation) -> float:
    """Returns the time from the acceptance of a generation to its deadline, both on the scheduler's clock."""
    ahead = generation.spec.deadline.ToNanoseconds() - generation.create_time.ToNanoseconds()
    return ahead / 1e9


@pytest.mark.parametrize("skew", [-SKEW_SECONDS, SKEW_SECONDS])
async def test_client_with_another_clock_gets_the_time_that_it_asked_for(
    world: World, monkeypatch: pytest.MonkeyPatch, skew: int
) -> None:
    clock, clock_ns = time.time, time.time_ns
    with monkeypatch.context() as other_clock:  # gRPC itself would notice a clock that only Python has
        other_clock.setattr(time, "time", lambda: clock() + skew)
        other_clock.setattr(time, "time_ns", lambda: clock_ns() + skew * 10**9)
        request = build_request("a red car", {"deadline": 60})
    accepted = (await world.api.SubmitGeneration(request, timeout=20)).generation
    assert seconds_allowed(accepted) == pytest.approx(60, abs=5)
    assert kinds(await world.events(accepted))[-1] == "succeeded"


async def test_timeout_ends_a_generation(world: World) -> None:
    world.denoiser.pause_before = 1
    job = await world.submit(timeout=Duration(seconds=1))
    events = await world.events(job)
    check_sequence(events)
    assert events[-1].failed.error.reason == errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    world.denoiser.go.set()


async def test_repetition_does_not_extend_the_deadline(world: World) -> None:
    first = await world.submit(request_id="repeated", timeout=Duration(seconds=60))
    longer = await world.submit(request_id="repeated", timeout=Duration(seconds=3_600))
    absolute = Timestamp(seconds=int(time.time()) + 7_200)
    other = await world.submit(request_id="repeated", deadline=absolute)
    assert first.generation_id == longer.generation_id == other.generation_id
    assert first.spec == longer.spec == other.spec


async def test_timeout_and_deadline_exclude_each_other(world: World) -> None:
    deadline = Timestamp(seconds=int(time.time()) + 60)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.submit(timeout=Duration(seconds=60), deadline=deadline)
    error = from_rpc_error(caught.value, "scheduler")
    assert error.reason == errors_pb2.ERROR_REASON_INVALID_FIELD
    assert {violation.field for violation in error.violations} == {"spec.timeout", "spec.deadline"}
