"""Verifies that no job is lost while the scheduler lacks a resource of its own, and that it recovers."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, from_rpc_error
from google.protobuf.timestamp_pb2 import Timestamp

from tests.integration.scheduler.world import World, check_sequence, kinds

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with World(tmp_path_factory.mktemp("resources")) as world:
        await run_job(world)
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


@contextmanager
def locked(world: World) -> Iterator[None]:
    """Holds the lock of the job database in another process than the scheduler."""
    other = sqlite3.connect(world.directory / "jobs.db", isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        other.close()


@contextmanager
def limited(world: World, kind: int, limit: int) -> Iterator[None]:
    """Lowers a resource limit of the scheduler's process."""
    _, hard = resource.prlimit(world.process.pid, kind)
    soft, hard = resource.prlimit(world.process.pid, kind, (limit, hard))
    try:
        yield
    finally:
        resource.prlimit(world.process.pid, kind, (soft, hard))


async def start_job(world: World) -> pb.Generation:
    """Starts a job whose denoiser waits after the first step for `world.denoiser.go`."""
    world.denoiser.pause_before = 1
    job = await world.submit("runs")
    await world.events(job, until="step_completed")
    return job


async def rejected_submission(world: World, request_id: str) -> tuple[grpc.StatusCode, ChorusError]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.submit("rejected", request_id)
    return caught.value.code(), from_rpc_error(caught.value, "scheduler")


async def run_job(world: World) -> None:
    """Runs a job, submitted as soon as the scheduler has reached the denoiser."""
    async with asyncio.timeout(30):
        while True:
            try:
                job = await world.submit("first")
                break
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.1)
    await expect_success(world, job)


async def expect_success(world: World, job: pb.Generation) -> None:
    events = await world.events(job)
    check_sequence(events)
    assert kinds(events)[-1] == "succeeded"


@pytest.mark.fault("logging")
@pytest.mark.parametrize("sink", ["closed", "full"])
async def test_jobs_run_while_nothing_can_be_logged(tmp_path: Path, sink: str) -> None:
    world = World(tmp_path)
    if sink == "full":
        world.process.log = Path("/dev/full")
        reader = None
    else:
        world.process.log = tmp_path / "pipe"
        os.mkfifo(world.process.log)
        reader = os.open(world.process.log, os.O_RDONLY | os.O_NONBLOCK)
    async with world:
        if reader is not None:
            os.close(reader)
        await run_job(world)
        await world.denoiser.die()
        job = await world.submit()
        await world.events(job, until="waiting")
        await world.denoiser.start()
        await expect_success(world, job)
        assert world.process.terminate() == 0


@pytest.mark.fault("scheduler-resources")
async def test_locked_database_delays_jobs_and_rejects_submissions(world: World) -> None:
    running = await start_job(world)
    queued = await world.submit("queued")
    with locked(world):
        world.denoiser.go.set()
        code, error = await rejected_submission(world, "locked")
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "the job database is not available: database is locked" in error.message
        assert error.retry_after is not None
    for job in (running, queued, await world.submit("accepted now", "locked")):
        await expect_success(world, job)
    started = [request.generation_id for request in world.denoiser.requests]
    assert started[:2] == [running.generation_id, queued.generation_id], "none was run twice"


@pytest.mark.fault("scheduler-resources")
async def test_drain_with_a_locked_database_loses_no_job(world: World) -> None:
    job = await start_job(world)
    with locked(world):
        assert await asyncio.to_thread(world.process.terminate) == 0
    world.denoiser.pause_before = None
    await world.boot()
    await expect_success(world, job)


@pytest.mark.fault("scheduler-resources")
async def test_video_waits_for_a_file_descriptor(world: World) -> None:
    job = await start_job(world)
    with limited(world, resource.RLIMIT_NOFILE, 3):
        world.denoiser.go.set()
        *_, warning = await world.events(job, until="warning")
        assert "Too many open files" in warning.warning.warning.message
        assert warning.warning.warning.metadata["service"] == "scheduler"
    await expect_success(world, job)
    assert len(world.denoiser.requests) == 1, "the run is not repeated"


@pytest.mark.fault("logging")
async def test_video_waits_for_space_on_the_disk(world: World) -> None:
    """A limit on the size of files takes the place of the full disk."""
    job = await start_job(world)
    with limited(world, resource.RLIMIT_FSIZE, 1 << 20):
        world.denoiser.go.set()
        *_, warning = await world.events(job, until="warning")
        error = warning.warning.warning
        assert error.reason == errors.DISK_FULL
        assert error.metadata["setting"] == "CHORUS_SCHEDULER_VIDEO_DIR"
        assert "free space" in error.message
    await expect_success(world, job)
    assert len(world.denoiser.requests) == 1, "the run is not repeated"
    assert len((await world.video(job))[1]) > 1 << 20


@pytest.mark.fault("logging")
async def test_scheduler_recovers_after_nothing_could_be_written(world: World) -> None:
    running = await start_job(world)
    queued = await world.submit("queued")
    with limited(world, resource.RLIMIT_FSIZE, 1):
        world.denoiser.go.set()
        code, error = await rejected_submission(world, "full")
        assert code is grpc.StatusCode.UNAVAILABLE
        assert error.retry_after is not None
        assert (await world.get(running)).state == pb.GENERATION_STATE_RUNNING
    for job in (running, queued, await world.submit("accepted now", "full")):
        await expect_success(world, job)


@pytest.mark.fault("scheduler-resources")
async def test_deadline_ends_a_job_that_waits_for_a_resource(world: World) -> None:
    job = await start_job_with_deadline(world, 4)
    with limited(world, resource.RLIMIT_NOFILE, 3):
        world.denoiser.go.set()
        failed = (await world.events(job))[-1].failed
    assert failed.error.reason == errors.DEADLINE_EXCEEDED
    assert "Too many open files" in failed.error.message


async def start_job_with_deadline(world: World, seconds: float) -> pb.Generation:
    deadline = Timestamp()
    deadline.FromNanoseconds(int((time.time() + seconds) * 1e9))
    world.denoiser.pause_before = 1
    job = await world.submit("runs", deadline=deadline)
    await world.events(job, until="step_completed")
    return job
