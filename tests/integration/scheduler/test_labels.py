"""Verifies labels, search, several outputs and the times of runs and waits, over sockets."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, from_rpc_error

from tests.integration.scheduler.fakes import STEPS
from tests.integration.scheduler.world import World

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    settings = {"CHORUS_SCHEDULER_QUEUE_LIMIT": "8"}
    async with World(tmp_path_factory.mktemp("scheduler"), settings) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


async def rejected(call: Any) -> ChorusError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value, "scheduler")


async def submit(
    world: World, outputs: int, request_id: str = "", prompt: str = "a red car", **spec: Any
) -> pb.SubmitGenerationResponse:
    request = pb.SubmitGenerationRequest(
        request_id=request_id or str(uuid.uuid4()),
        spec=pb.GenerationSpec(prompt=prompt, **spec),
        outputs=outputs,
    )
    response: pb.SubmitGenerationResponse = await world.api.SubmitGeneration(request, timeout=20)
    return response


async def search(world: World, **filters: Any) -> list[str]:
    """Returns the ids of all pages, of two generations each."""
    request = pb.ListGenerationsRequest(page_size=2, **filters)
    found: list[str] = []
    while True:
        response = await world.api.ListGenerations(request, timeout=20)
        found += [generation.generation_id for generation in response.generations]
        request.page_token = response.next_page_token
        if not request.page_token:
            return found


async def test_generations_are_found_by_labels_prompt_and_time(world: World) -> None:
    mark = uuid.uuid4().hex
    made = []
    for number, prompt in enumerate(("a Red car", "a blue car", "a RED boat", "a green boat")):
        labels = {"test": mark, "kind": prompt.split()[-1], "number": str(number)}
        accepted = await world.submit(prompt, labels=labels)
        assert dict(accepted.spec.labels) == labels
        await world.events(accepted)
        made.append(accepted)
    ids = [generation.generation_id for generation in reversed(made)]
    assert await search(world, labels={"test": mark}) == ids
    assert await search(world, labels={"test": mark, "kind": "boat"}) == ids[:2]
    assert await search(world, labels={"test": mark}, prompt_contains="red") == [ids[1], ids[3]]
    assert await search(world, labels={"test": mark, "kind": "plane"}) == []
    second, last = made[1].create_time, made[3].create_time
    assert await search(world, labels={"test": mark}, created_after=second) == ids[:3]
    assert await search(world, labels={"test": mark}, created_before=second) == ids[3:]
    assert await search(world, labels={"test": mark}, created_after=second, created_before=last) == ids[1:3]
    succeeded, failed = pb.GENERATION_STATE_SUCCEEDED, pb.GENERATION_STATE_FAILED
    assert await search(world, labels={"test": mark}, state=succeeded) == ids
    assert await search(world, labels={"test": mark}, state=failed) == []
    await world.api.DeleteGeneration(pb.DeleteGenerationRequest(generation_id=ids[0]), timeout=20)
    assert await search(world, labels={"test": mark}) == ids[1:]


async def test_page_token_of_other_filters_is_rejected(world: World) -> None:
    mark = uuid.uuid4().hex
    for _ in range(2):
        await world.events(await world.submit(labels={"test": mark}))
    first = pb.ListGenerationsRequest(page_size=1, labels={"test": mark})
    token = (await world.api.ListGenerations(first, timeout=20)).next_page_token
    assert token
    other = pb.ListGenerationsRequest(page_size=1, labels={"test": "other"}, page_token=token)
    error = await rejected(world.api.ListGenerations(other, timeout=20))
    assert [violation.field for violation in error.violations] == ["page_token"]


async def test_invalid_labels_and_filters_are_named(world: World) -> None:
    error = await rejected(submit(world, 17, labels={"-": "x", "fine": "a\nb"}, seed=1))
    assert [v.field for v in error.violations] == ["outputs", 'spec.labels["-"]', 'spec.labels["fine"]']
    request = pb.ListGenerationsRequest(labels={"-": "x"}, prompt_contains="x" * 257)
    error = await rejected(world.api.ListGenerations(request, timeout=20))
    assert [v.field for v in error.violations] == ['labels["-"]', "prompt_contains"]


async def test_labels_belong_to_the_request_and_not_to_its_video(world: World) -> None:
    request_id = str(uuid.uuid4())
    first = await submit(world, 0, request_id, labels={"a": "1"}, seed=3)
    again = await submit(world, 1, request_id, labels={"a": "1"}, seed=3)
    assert (again.created, again.generation.generation_id) == (False, first.generation.generation_id)
    error = await rejected(submit(world, 1, request_id, labels={"a": "2"}, seed=3))
    assert error.reason == errors.REQUEST_ID_REUSED
    await world.events(first.generation)
    [request] = world.denoiser.requests
    assert b"label" not in request.SerializeToString()


@pytest.mark.parametrize("seed", [None, 2**64 - 2])
async def test_outputs_of_a_request_are_generations_of_their_own(world: World, seed: int | None) -> None:
    """No output takes the seed of a donor with an edited prompt, as a request without a seed would."""
    world.cache.hold(0.95, 1, 2, 3)
    spec: dict[str, Any] = {} if seed is None else {"seed": seed}
    response = await submit(world, 3, **spec)
    outputs = list(response.generations)
    assert response.created
    assert response.generation == outputs[0]
    assert [(each.output_index, each.output_count) for each in outputs] == [(1, 3), (2, 3), (3, 3)]
    seeds = [each.spec.seed for each in outputs]
    assert len(set(seeds)) == 3
    if seed is not None:
        assert seeds == [2**64 - 2, 2**64 - 1, 0]
    for each in outputs:
        await world.events(each)
    ended = [await world.get(each) for each in outputs]
    assert [(each.spec.seed, each.seed_chosen) for each in ended] == [(each, False) for each in seeds]
    assert [each.plan.seed for each in ended] == seeds
    assert sorted(request.seed for request in world.denoiser.requests) == sorted(seeds)


async def test_repetition_returns_the_outputs_that_are_left(world: World) -> None:
    request_id = str(uuid.uuid4())
    outputs = (await submit(world, 3, request_id)).generations
    for each in outputs:
        await world.events(each)
    ids = [each.generation_id for each in outputs]
    again = await submit(world, 3, request_id)
    assert ([each.generation_id for each in again.generations], again.created) == (ids, False)
    assert again.generation.generation_id == ids[0]
    for other in (0, 1, 2, 4):
        error = await rejected(submit(world, other, request_id))
        assert error.reason == errors.REQUEST_ID_REUSED
    await world.api.DeleteGeneration(pb.DeleteGenerationRequest(generation_id=ids[0]), timeout=20)
    again = await submit(world, 3, request_id)
    assert ([each.generation_id for each in again.generations], again.created) == (ids[1:], False)
    assert again.generation.generation_id == ids[1]
    for left in ids[1:]:
        await world.api.DeleteGeneration(pb.DeleteGenerationRequest(generation_id=left), timeout=20)
    assert (await submit(world, 2, request_id)).created


async def test_outputs_are_cancelled_each_on_its_own(world: World) -> None:
    world.denoiser.pause_before = 1
    outputs = (await submit(world, 3)).generations
    await world.events(outputs[0], until="started")
    assert (await world.cancel(outputs[1])).state == pb.GENERATION_STATE_CANCELLED
    world.denoiser.pause_before = None
    world.denoiser.go.set()
    for each, state in zip(outputs, ("SUCCEEDED", "CANCELLED", "SUCCEEDED"), strict=True):
        await world.events(each)
        assert pb.GenerationState.Name((await world.get(each)).state) == f"GENERATION_STATE_{state}"


async def test_outputs_that_exceed_the_queue_are_rejected_together(world: World) -> None:
    world.denoiser.pause_before = 0
    await world.events(await world.submit("first"), until="started")
    before = await search(world)
    error = await rejected(submit(world, 9))
    assert error.reason == errors.QUEUE_FULL
    assert "9 outputs" in error.message
    assert await search(world) == before
    assert len((await submit(world, 8)).generations) == 8


async def test_time_of_runs_and_waits_is_the_time_of_the_generation(world: World) -> None:
    accepted = await world.submit()
    events = await world.events(accepted)
    ended = await world.get(accepted)
    [started] = [event.time for event in events if event.HasField("started")]
    assert ended.start_time == started
    created, start, end = (
        each.ToNanoseconds() / 1e9 for each in (ended.create_time, ended.start_time, ended.end_time)
    )
    timings = ended.timings
    assert timings.running_seconds == pytest.approx(end - start, abs=1e-6)
    assert timings.waiting_seconds == pytest.approx(start - created, abs=1e-6)
    assert events[-1].succeeded.timings == timings
    assert ended.steps_run == STEPS


async def test_time_of_a_waiting_generation_goes_on(world: World) -> None:
    world.denoiser.pause_before = 0
    await world.events(await world.submit("first"), until="started")
    waits = await world.submit("second")
    first = (await world.get(waits)).timings
    second = (await world.get(waits)).timings
    assert 0 < first.waiting_seconds < second.waiting_seconds
    assert second.running_seconds == 0
