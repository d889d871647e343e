"""Verifies that pictures of steps are made if the request asks for them, and change nothing else."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import grpc.aio
import pytest
import pytest_asyncio
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import from_rpc_error

from services.scheduler.dispatch.repetition import make_repetition_key
from tests.integration.scheduler.fakes import STEPS
from tests.integration.scheduler.world import World

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with World(tmp_path_factory.mktemp("previews")) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


def read_previews(events: list[pb.GenerationEvent]) -> list[bytes]:
    return [event.step_completed.preview for event in events if event.HasField("step_completed")]


async def test_events_of_steps_carry_pictures_only_if_requested(world: World) -> None:
    accepted = await world.submit(step_previews=True)
    assert read_previews(await world.events(accepted)) == [b"a picture"] * STEPS
    assert (await world.get(accepted)).spec.step_previews
    plain = await world.submit()
    assert read_previews(await world.events(plain)) == [b""] * STEPS
    assert [request.step_previews for request in world.denoiser.requests] == [True, False]


async def test_picture_that_cannot_be_made_is_one_warning(world: World) -> None:
    world.denoiser.preview = b""
    accepted = await world.submit(step_previews=True)
    await world.events(accepted)
    generation = await world.get(accepted)
    assert generation.state == pb.GENERATION_STATE_SUCCEEDED
    [warning] = generation.warnings
    assert (warning.reason, warning.metadata["field"]) == (errors.FIELD_IGNORED, "spec.step_previews")
    assert "out of memory" in warning.message


async def test_same_request_id_with_another_wish_is_refused(world: World) -> None:
    request_id = str(uuid.uuid4())
    spec = pb.GenerationSpec(prompt="a red car", step_previews=True)
    request = pb.SubmitGenerationRequest(request_id=request_id, spec=spec)
    await world.api.SubmitGeneration(request, timeout=20)
    request.spec.step_previews = False
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.api.SubmitGeneration(request, timeout=20)
    assert from_rpc_error(caught.value, "scheduler").reason == errors.REQUEST_ID_REUSED


async def test_request_with_pictures_repeats_one_without() -> None:
    generation = pb.Generation(spec=pb.GenerationSpec(prompt="a red car", seed=7))
    plain = make_repetition_key(generation)
    generation.spec.step_previews = True
    assert make_repetition_key(generation) == plain is not None
