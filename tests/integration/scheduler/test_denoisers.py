"""Verifies that a scheduler spreads jobs over its denoisers, and goes on with those that remain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus.scheduler.v1 import scheduler_pb2_grpc
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.runtime.resources import Resources
from services.runtime.version import VERSION
from services.scheduler.__main__ import Scheduler
from services.scheduler.planning.calibration_files import load_calibrations
from services.scheduler.settings import SchedulerSettings
from tests.integration.scheduler.fakes import MODEL, VIDEO, FakeDenoiser
from tests.integration.scheduler.world import World, check_sequence, kinds
from tests.processes import free_port
from tests.scraping import scrape_until


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    settings = {
        "CHORUS_SCHEDULER_METRICS_PORT": str(free_port()),
        "CHORUS_SCHEDULER_RETRY_SECONDS": "0.2",
        "CHORUS_SCHEDULER_WAIT_FOR_DONORS": "false",  # the prompts are alike
    }
    async with World(tmp_path, settings, denoiser_count=3) as world:
        await until_serving(world, 3)
        yield world


async def until_serving(world: World, serving: int, refused: int = 0) -> None:
    """Returns once the scheduler uses this many denoisers, and refuses this many."""
    port = int(world.settings["CHORUS_SCHEDULER_METRICS_PORT"])
    await asyncio.to_thread(
        scrape_until,
        port,
        lambda seen: (
            (seen.value("chorus_denoisers_serving"), seen.value("chorus_denoisers_refused"))
            == (serving, refused)
        ),
    )


def pause(world: World, before: int = 1) -> None:
    for denoiser in world.denoisers:
        denoiser.pause_before = before


def resume(world: World) -> None:
    for denoiser in world.denoisers:
        denoiser.go.set()


def at(world: World, address: str) -> FakeDenoiser:
    return next(each for each in world.denoisers if each.target == address)


async def started_on(world: World, job: pb.Generation) -> str:
    """Waits until a job is started; returns the address of its denoiser."""
    return (await world.events(job, until="started"))[-1].started.denoiser


async def restart_with(
    world: World, denoiser: FakeDenoiser, model: denoiser_pb2.ModelInfo, refused: tuple[int, int] = (0, 0)
) -> None:
    """Restarts a denoiser with another model.

    Args:
        refused: number of denoisers that are refused before and afterwards.
    """
    await denoiser.die()
    await until_serving(world, len(world.denoisers) - 1, refused[0])
    denoiser.models = [model]
    await denoiser.start()
    await until_serving(world, len(world.denoisers), refused[1])


async def test_jobs_spread_over_all_denoisers(world: World) -> None:
    pause(world)
    jobs = [await world.submit(f"prompt {n}") for n in range(4)]
    used = [await started_on(world, job) for job in jobs[:3]]
    assert set(used) == {each.target for each in world.denoisers}
    assert [each.running for each in world.denoisers] == [1, 1, 1]
    queued = await world.get(jobs[3])
    assert (queued.state, queued.queue_position) == (pb.GENERATION_STATE_QUEUED, 1)
    resume(world)
    for job in jobs:
        events = await world.events(job)
        check_sequence(events)
        assert kinds(events)[-1] == "succeeded"
    assert [(await world.get(job)).denoiser for job in jobs[:3]] == used
    assert sum(len(each.requests) for each in world.denoisers) == 4


async def test_job_of_a_killed_denoiser_ends_once_on_another(world: World) -> None:
    pause(world, before=2)
    job = await world.submit()
    first = at(world, await started_on(world, job))
    await world.events(job, until="step_completed")
    await first.die()
    resume(world)
    events = await world.events(job)
    check_sequence(events)
    assert kinds(events)[-1] == "succeeded"
    assert "waiting" not in kinds(events), "another denoiser runs it at once"
    used = [event.started.denoiser for event in events if event.HasField("started")]
    assert used[0] == first.target
    assert used[1] != first.target
    ended = await world.get(job)
    assert (ended.attempts, ended.denoiser) == (2, used[1])
    assert (await world.video(job))[1] == VIDEO
    assert sorted(len(each.requests) for each in world.denoisers) == [0, 1, 1]


async def test_denoiser_that_crashed_is_selected_last(world: World) -> None:
    pause(world)
    first = at(world, await started_on(world, await world.submit()))
    await first.die()
    await first.start()
    await until_serving(world, 3)
    second = await world.submit()
    assert await started_on(world, second) != first.target
    third = await world.submit()
    assert await started_on(world, third) == first.target, "the others are busy"
    resume(world)


async def test_jobs_wait_only_while_no_denoiser_serves(world: World) -> None:
    for denoiser in world.denoisers:
        await denoiser.die()
    job = await world.submit()
    waiting = (await world.events(job, until="waiting"))[-1].waiting.cause
    assert waiting.metadata["service"] == "denoiser"
    assert "none of 3 serves" in waiting.message
    await world.denoisers[2].start()
    events = await world.events(job)
    check_sequence(events)
    assert events[-1].HasField("succeeded")
    assert (await world.get(job)).denoiser == world.denoisers[2].target


async def test_full_denoiser_is_skipped_for_the_time_that_it_requests(world: World) -> None:
    first = min(world.denoisers, key=lambda each: each.target)
    first.fault = ChorusError(errors.QUEUE_FULL, "the queue is full", retry_after=20.0)
    job = await world.submit()
    events = await world.events(job)
    check_sequence(events)
    assert kinds(events)[-1] == "succeeded"
    assert "waiting" not in kinds(events)
    assert len(first.requests) == 1
    pause(world)
    jobs = [await world.submit(f"prompt {n}") for n in range(2)]
    assert first.target not in [await started_on(world, each) for each in jobs]
    resume(world)
    for each in jobs:
        await world.events(each)
    assert len(first.requests) == 1


async def test_job_waits_for_the_first_of_several_full_denoisers(world: World) -> None:
    for seconds, denoiser in zip((20.0, 0.1, 20.0), world.denoisers, strict=True):
        denoiser.fault = ChorusError(errors.QUEUE_FULL, "the queue is full", retry_after=seconds)
    events = await world.events(await world.submit(), seconds=15.0)
    check_sequence(events)
    assert kinds(events)[-1] == "succeeded"
    assert len(world.denoisers[1].requests) == 2


async def test_denoiser_with_other_weights_is_refused(world: World) -> None:
    other = denoiser_pb2.ModelInfo()
    other.CopyFrom(MODEL)
    other.weights_digest = "ef" * 32
    last = world.denoisers[2]
    await restart_with(world, last, other, refused=(0, 1))
    pause(world)
    jobs = [await world.submit(f"prompt {n}") for n in range(3)]
    used = {await started_on(world, job) for job in jobs[:2]}
    assert used == {each.target for each in world.denoisers[:2]}
    assert (await world.get(jobs[2])).state == pb.GENERATION_STATE_QUEUED
    resume(world)
    for job in jobs:
        assert kinds(await world.events(job))[-1] == "succeeded"
    assert not last.requests
    log = [line for line in world.process.tail(500).splitlines() if "model of a denoiser refused" in line]
    assert len(log) == 1
    assert all(part in log[0] for part in (last.target, "small", "weights_digest"))


async def test_other_weights_come_into_force_once_all_have_them(world: World) -> None:
    other = denoiser_pb2.ModelInfo()
    other.CopyFrom(MODEL)
    other.weights_digest = "ef" * 32
    for number, denoiser in enumerate(world.denoisers):
        await restart_with(world, denoiser, other, refused=(number, (number + 1) % 3))
    pause(world)
    assert len({await started_on(world, await world.submit(f"prompt {n}")) for n in range(3)}) == 3
    resume(world)


async def test_speed_and_backend_may_differ(world: World) -> None:
    faster = denoiser_pb2.ModelInfo()
    faster.CopyFrom(MODEL)
    faster.seconds_per_step, faster.backend, faster.fallback_steps = 0.1, "tensorrt", 3
    await restart_with(world, world.denoisers[0], faster)
    pause(world)
    assert len({await started_on(world, await world.submit(f"prompt {n}")) for n in range(3)}) == 3
    resume(world)


async def test_job_runs_on_the_denoiser_that_has_its_model(world: World) -> None:
    other = denoiser_pb2.ModelInfo()
    other.CopyFrom(MODEL)
    other.model_id = "large"
    last = world.denoisers[2]
    await restart_with(world, last, other)
    listed = await world.api.ListModels(pb.ListModelsRequest(), timeout=20)
    assert [model.model_id for model in listed.models] == ["small", "large"]
    pause(world)
    small = [await world.submit(f"prompt {n}") for n in range(3)]
    large = await world.submit(model_id="large")
    assert await started_on(world, large) == last.target, "a queue of another model does not delay it"
    assert (await world.get(small[2])).state == pb.GENERATION_STATE_QUEUED
    await last.die()
    await world.events(large, until="waiting")
    later = await world.submit("later", model_id="large")
    waiting = (await world.events(later, until="waiting"))[-1].waiting.cause
    assert "no denoiser that serves 'large' is ready" in waiting.message
    resume(world)
    for job in small:
        assert kinds(await world.events(job))[-1] == "succeeded"
    await last.start()
    for job in (large, later):
        events = await world.events(job)
        check_sequence(events)
        assert kinds(events)[-1] == "succeeded"


class Names:
    """DNS that a test answers."""

    def __init__(self) -> None:
        self.addresses: list[str] | None = None  # None if the name cannot be resolved

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("denoisers", 7403)
        if self.addresses is None:
            raise OSError("no such name")
        return self.addresses


@asynccontextmanager
async def scheduler_in_process(directory: Path, names: Names) -> AsyncIterator[World]:
    """Yields a client of a scheduler in this process, which finds its denoisers by `names`."""
    world = World(directory, denoiser_count=2)
    for fake in world.fakes:
        await fake.start()
    settings = SchedulerSettings(
        embedder_target=world.embedder.target,
        cache_target=world.cache.target,
        denoiser_target=("dns:///denoisers:7403",),
        resolve_seconds=0.1,
        wait_for_donors=False,
        database=str(directory / "jobs.db"),
        video_dir=directory / "videos",
    )
    scheduler = Scheduler(settings, load_calibrations(()), resolve=names.resolve)
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    async with Resources() as resources, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await scheduler.start(resources, server)
        await server.start()
        world.api = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        try:
            yield world
        finally:
            await scheduler.drain()
            await server.stop(5)
    for fake in world.fakes:
        await fake.die()


async def submit_when_available(world: World, prompt: str) -> pb.Generation:
    async with asyncio.timeout(20):
        while True:
            try:
                return await world.submit(prompt)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNKNOWN:  # no interceptor converts the error
                    raise


async def test_denoisers_come_and_go_with_their_addresses(tmp_path: Path) -> None:
    names = Names()
    async with scheduler_in_process(tmp_path, names) as world:
        first, second = world.denoisers
        pause(world)
        names.addresses = [first.target]
        job = await submit_when_available(world, "one")
        assert await started_on(world, job) == first.target

        names.addresses = [second.target]
        other = await world.submit("two")
        assert await started_on(world, other) == second.target
        assert first.running == 1, "its run continues"
        first.go.set()
        events = await world.events(job)
        check_sequence(events)
        assert (await world.get(job)).attempts == 1

        names.addresses = None
        second.go.set()
        await world.events(other)
        assert await started_on(world, await world.submit("three")) == second.target, "known addresses stay"

        second.go.clear()
        names.addresses = [second.target, first.target]
        first.go.clear()
        both = [await world.submit(f"prompt {n}") for n in range(2)]
        assert {await started_on(world, each) for each in both} == {first.target, second.target}
        resume(world)
        for each in both:
            await world.events(each)


async def test_server_info_describes_every_service_to_callers_without_keys(world: World) -> None:
    async def until(
        expected: list[tuple[str, pb.ServiceState.ValueType, str, str]],
    ) -> pb.GetServerInfoResponse:
        async with asyncio.timeout(30):
            while True:
                info: pb.GetServerInfoResponse = await world.api.GetServerInfo(pb.GetServerInfoRequest())
                found = [(each.name, each.state, each.address, each.version) for each in info.services]
                if found == expected:
                    return info
                await asyncio.sleep(0.05)

    serving, silent = pb.SERVICE_STATE_SERVING, pb.SERVICE_STATE_NOT_SERVING
    peers = [(each.name, serving, each.target, each.version) for each in world.fakes]
    info = await until([("scheduler", serving, "", VERSION), *peers])
    assert (info.tenant, info.denoisers_left_out) == ("", 0)
    assert not any(each.detail for each in info.services)
    await world.cache.die()
    await world.denoisers[1].die()
    for index, fake in ((1, world.cache), (3, world.denoisers[1])):
        peers[index] = (fake.name, silent, fake.target, "")
    info = await until([("scheduler", serving, "", VERSION), *peers])
    assert [bool(each.detail) for each in info.services] == [False, False, True, False, True, False]
    world.denoisers[1].version = "0.8"
    await world.denoisers[1].start()
    peers[3] = ("denoiser", serving, world.denoisers[1].target, "0.8")
    await until([("scheduler", serving, "", VERSION), *peers])
