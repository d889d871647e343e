"""The asyncio and the sync client against a scripted scheduler over sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from chorus_client import (
    AsyncCacheClient,
    AsyncChorusClient,
    ChorusClient,
    ChorusError,
    GenerationFailed,
    explicit_reuse,
)
from chorus_rpc import errors

from tests.integration.client.fakes import VIDEO, FakeDeployment, deployment_in_thread


@pytest.fixture
async def deployment() -> AsyncIterator[FakeDeployment]:
    made = FakeDeployment()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def client(deployment: FakeDeployment) -> AsyncIterator[AsyncChorusClient]:
    async with AsyncChorusClient(deployment.target) as made:
        yield made


def unused_target() -> str:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{holder.getsockname()[1]}"


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_generate_brings_the_video_and_every_event_in_order(client: AsyncChorusClient) -> None:
    seen, accepted = [], []
    video = await client.generate("a red circle", seed=7, on_event=seen.append, on_accepted=accepted.append)
    assert video.data == VIDEO
    assert video.generation.generation_id == accepted[0].generation_id
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].HasField("succeeded")


async def test_options_reach_the_server_as_given(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    await client.submit(
        "x", model="m", frames=8, height=32, width=32, sigmas=[1, 0.5, 0], seed=3, reuse="safe", no_store=True
    )
    spec = deployment.scheduler.requests[0].spec
    assert (spec.model_id, spec.shape.frames, list(spec.schedule.sigmas)) == ("m", 8, [1, 0.5, 0])
    assert (spec.seed, spec.no_store, spec.HasField("deadline")) == (3, True, False)


async def test_an_explicit_plan_reaches_the_server(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    plan = explicit_reuse(1, k2=3, region="probe", amplify="contrast:0.5")
    await client.submit("x", explicit_reuse=plan)
    assert deployment.scheduler.requests[0].spec.explicit_reuse == plan
    await client.submit("x", explicit_reuse=None)
    assert not deployment.scheduler.requests[1].spec.HasField("explicit_reuse")


async def test_each_submission_has_its_own_request_id_unless_given(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    await client.submit("x")
    await client.submit("x")
    first = await client.submit("x", request_id="same")
    again = await client.submit("x", request_id="same")
    ids = [request.request_id for request in deployment.scheduler.requests]
    assert ids[0] != ids[1]
    assert first.generation_id == again.generation_id


@pytest.mark.parametrize("drops", [[0, 1, 2, 1], [3], [5, 0, 0]])
async def test_a_watch_survives_broken_streams_without_loss_or_repetition(
    client: AsyncChorusClient, deployment: FakeDeployment, drops: list[int]
) -> None:
    generation = await client.submit("a red circle")
    deployment.scheduler.drops = list(drops)
    seen = [event.sequence async for event in client.watch(generation.generation_id)]
    assert seen == list(range(1, generation.last_sequence + 1))
    assert deployment.scheduler.watched_after[-1] > 0


async def test_a_watch_goes_on_over_a_restart_of_the_server(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    generation = await client.submit("slow circle")
    scheduler = deployment.scheduler
    seen: list[int] = []

    async def follow() -> None:
        async for event in client.watch(generation.generation_id):
            seen.append(event.sequence)

    following = asyncio.create_task(follow())
    async with asyncio.timeout(20):
        await asyncio.to_thread(scheduler.watching.wait, 10)
        before = len(scheduler.events[generation.generation_id])
        await deployment.stop()
        await deployment.start()
        await client.cancel(generation.generation_id)
        await following
    assert seen == list(range(1, before + 2))


async def test_a_watch_of_an_ended_generation_after_its_last_event_is_empty(
    client: AsyncChorusClient,
) -> None:
    generation = await client.submit("x")
    rest = [e async for e in client.watch(generation.generation_id, generation.last_sequence)]
    assert rest == []


async def test_a_watch_ends_at_its_timeout(client: AsyncChorusClient) -> None:
    generation = await client.submit("slow circle")
    with pytest.raises(ChorusError) as fault:
        async for _ in client.watch(generation.generation_id, timeout=0.3):
            pass
    assert fault.value.reason == errors.DEADLINE_EXCEEDED


async def test_a_watch_gives_up_on_a_server_that_stays_away() -> None:
    async with AsyncChorusClient(unused_target()) as client:
        with pytest.raises(ChorusError) as fault:
            async for _ in client.watch("gen-1", patience=0.2):
                pass
    assert fault.value.reason == errors.DEPENDENCY_UNAVAILABLE
    assert fault.value.metadata["service"] == "scheduler"


async def test_bad_input_names_each_field(client: AsyncChorusClient, deployment: FakeDeployment) -> None:
    with pytest.raises(ChorusError) as fault:
        await client.submit(" ", frames=65, height=32, width=32)
    assert [v.field for v in fault.value.violations] == ["spec.prompt", "spec.shape.frames"]
    assert deployment.scheduler.generations == {}


async def test_what_protobuf_cannot_carry_is_refused_before_it_is_sent(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    with pytest.raises(ChorusError) as fault:
        await client.submit(
            "\udcff", steps=-1, sigmas=[1, 0], seed=2**64, reuse="some", deadline=float("nan")
        )
    assert {v.field for v in fault.value.violations} == {"prompt", "steps", "seed", "reuse", "deadline"}
    assert deployment.scheduler.requests == []


async def test_a_size_is_whole_or_left_to_the_model(client: AsyncChorusClient) -> None:
    with pytest.raises(
        ChorusError, match="shape: give frames, height and width, or none of them, not only width"
    ):
        await client.submit("x", width=32)


async def test_a_failed_generation_raises_its_reason(client: AsyncChorusClient) -> None:
    with pytest.raises(GenerationFailed, match="NaN at step 3") as fault:
        await client.generate("fail please")
    assert fault.value.generation.generation_id == "gen-1"


async def test_cancelling_the_caller_cancels_the_generation(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    task = asyncio.create_task(client.generate("slow circle"))
    await asyncio.to_thread(deployment.scheduler.watching.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError, match="gen-1 is cancelled"):
        await task
    assert deployment.scheduler.events["gen-1"][-1].HasField("cancelled")


async def test_a_generation_cancelled_elsewhere_is_told_apart(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    task = asyncio.create_task(client.generate("slow circle"))
    await asyncio.to_thread(deployment.scheduler.watching.wait, 10)
    await client.cancel("gen-1")
    with pytest.raises(GenerationFailed) as fault:
        await task
    assert fault.value.reason == errors.CANCELLED


async def test_list_turns_pages_and_keeps_the_limit(client: AsyncChorusClient) -> None:
    for number in range(5):
        await client.submit(f"x {number}")
    await client.submit("fail please")
    assert [g.generation_id for g in await client.list(limit=5)] == [f"gen-{n}" for n in (6, 5, 4, 3, 2)]
    assert [g.generation_id for g in await client.list("failed")] == ["gen-6"]
    with pytest.raises(ChorusError, match="state: must be one of"):
        await client.list("sleeping")


async def test_a_damaged_video_is_not_believed(
    client: AsyncChorusClient, deployment: FakeDeployment, tmp_path: Path
) -> None:
    generation = await client.submit("x")
    deployment.scheduler.damage_video = True
    with pytest.raises(ChorusError) as fault:
        await client.save_video(generation.generation_id, tmp_path / "x.mp4")
    assert fault.value.reason == errors.BLOB_CORRUPT
    assert files_in(tmp_path) == []


async def test_unknown_id(client: AsyncChorusClient) -> None:
    with pytest.raises(ChorusError) as fault:
        await client.get("gen-9")
    assert fault.value.reason == errors.NOT_FOUND


async def test_cache_client_speaks_for_its_tenant(deployment: FakeDeployment) -> None:
    async with AsyncCacheClient(deployment.target, "team-a") as cache:
        assert (await cache.stats()).entries == 7
        await cache.purge(model="m", older_than=90)
        with pytest.raises(ChorusError, match="say what"):
            await cache.purge()
    assert deployment.cache.tenants == ["team-a"]
    [request] = deployment.cache.purges
    assert (request.model_id, request.older_than.seconds, request.all) == ("m", 90, False)


def test_sync_client_does_the_same(tmp_path: Path) -> None:
    with deployment_in_thread() as deployment, ChorusClient(deployment.target) as client:
        video = client.generate("a red circle")
        identifier = video.generation.generation_id
        assert video.data == VIDEO
        assert client.get(identifier).generation_id == identifier
        assert [g.generation_id for g in client.list()] == [identifier]
        assert client.save_video(identifier, tmp_path / "x.mp4").read_bytes() == VIDEO
        assert [e.sequence for e in client.watch(identifier)] == list(range(1, 7))
        slow = client.submit("slow circle")
        events = client.watch(slow.generation_id)
        assert next(events).HasField("queued")
        client.cancel(slow.generation_id)
        assert [e.WhichOneof("event") for e in events][-1] == "cancelled"
        with pytest.raises(GenerationFailed):
            client.generate("fail please")


def test_sync_client_closed_twice_refuses_calls() -> None:
    client = ChorusClient(unused_target())
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.get("gen-1")
