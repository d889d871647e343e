"""Tests the list of models, previews of plans, deletion, and deadlines that are refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from chorus.common.v1 import errors_pb2, plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.errors import ChorusError, from_rpc_error
from google.protobuf.duration_pb2 import Duration

from tests.integration.scheduler.fakes import MODEL
from tests.integration.scheduler.world import World, kinds

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with World(tmp_path_factory.mktemp("offers")) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


async def rejected(call: Any) -> ChorusError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value, "scheduler")


def preview(world: World, **spec: Any) -> Any:
    request = pb.PreviewPlanRequest(spec=pb.GenerationSpec(**spec))
    return world.api.PreviewPlan(request, timeout=20)


def delete(world: World, generation_id: str) -> Any:
    return world.api.DeleteGeneration(pb.DeleteGenerationRequest(generation_id=generation_id), timeout=20)


async def test_models_are_listed_with_bounds_and_defaults(world: World) -> None:
    [model] = (await world.api.ListModels(pb.ListModelsRequest(), timeout=20)).models
    assert model.model_id == MODEL.model_id
    for name in ("frames", "height", "width", "steps", "default_shape", "default_schedule"):
        assert getattr(model, name) == getattr(MODEL, name)
    assert model.seconds_per_step == MODEL.seconds_per_step


async def test_preview_of_a_miss_and_of_a_hit(world: World) -> None:
    reply = await preview(world, prompt="a red car", seed=7)
    assert (reply.plan.reuse_steps, reply.plan.total_steps) == (0, 4)
    assert reply.spec.model_id == MODEL.model_id
    assert reply.spec.seed == 7
    full = reply.run_seconds
    world.cache.hold(0.9995, 1, 2, 3)
    reply = await preview(world, prompt="a red car")
    assert reply.plan.reuse_steps == 3
    assert reply.plan.donor.generation_id == "donor-generation"
    assert 0 < reply.run_seconds < full
    listed = await world.api.ListGenerations(pb.ListGenerationsRequest(), timeout=20)
    assert not listed.generations, "nothing was accepted"
    assert not world.denoiser.requests


async def test_preview_counts_what_waits(world: World) -> None:
    world.denoiser.pause_before = 1
    first = await world.submit("runs")
    await world.events(first, until="started")
    async with asyncio.timeout(20):
        # What is known of the runs is at most a second old.
        while not (behind_a_run := (await preview(world, prompt="a red car")).queue_seconds):
            pass
    assert (await preview(world, prompt="a red car", priority=pb.PRIORITY_HIGH)).queue_seconds == 0.0
    for n in range(3):
        await world.submit(f"waits {n}")
    assert (await preview(world, prompt="a red car")).queue_seconds > behind_a_run
    world.denoiser.go.set()


async def test_preview_names_invalid_fields_and_missing_services(world: World) -> None:
    error = await rejected(preview(world, prompt="", steps=9000))
    assert error.reason == errors_pb2.ERROR_REASON_INVALID_FIELD
    assert {violation.field for violation in error.violations} == {"spec.prompt", "spec.steps"}
    await world.embedder.die()
    error = await rejected(preview(world, prompt="a red car"))
    assert error.reason == errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert error.metadata["service"] == "embedder"


async def test_deleted_generation_is_gone_with_its_video(world: World) -> None:
    world.denoiser.pause_before = 1
    job = await world.submit("a red car", request_id="once")
    error = await rejected(delete(world, job.generation_id))
    assert error.reason == errors_pb2.ERROR_REASON_WRONG_STATE
    assert "cancel it" in error.message
    world.denoiser.go.set()
    await world.events(job)
    folder = world.directory / "videos" / job.generation_id
    assert folder.exists()
    await delete(world, job.generation_id)
    assert not folder.exists()
    for call in (world.get(job), delete(world, job.generation_id), world.events(job)):
        assert (await rejected(call)).reason == errors_pb2.ERROR_REASON_NOT_FOUND
    again = await world.submit("a red car", request_id="once")
    assert again.generation_id != job.generation_id, "its request id is free"


async def test_deadline_that_cannot_be_met_is_refused_with_the_estimate(world: World) -> None:
    """Three generations of 2 s wait: a fourth within a second is refused, within a minute accepted."""
    world.denoiser.pause_before = 1
    first = await world.submit("runs")
    await world.events(first, until="started")
    for n in range(3):
        await world.submit(f"waits {n}", reuse=plan_pb2.REUSE_POLICY_OFF)
    off: dict[str, Any] = {"prompt": "late", "reuse": plan_pb2.REUSE_POLICY_OFF, "priority": pb.PRIORITY_LOW}
    error = None
    async with asyncio.timeout(20):  # until the generations that wait are estimated
        while error is None:
            try:
                await world.cancel(await world.submit(**off, timeout=Duration(nanos=900_000_000)))
            except grpc.aio.AioRpcError as refused:
                error = from_rpc_error(refused, "scheduler")
    [violation] = error.violations
    assert violation.field == "spec.timeout"
    assert "cannot be met" in violation.description
    accepted = await world.submit(**off, timeout=Duration(seconds=60))
    world.denoiser.go.set()
    assert kinds(await world.events(accepted))[-1] == "succeeded"
