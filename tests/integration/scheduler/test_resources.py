"""Verifies that no job is lost while the scheduler lacks a resource of its own, and that it recovers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import grpc.aio
import pytest
from chorus.scheduler.v1 import scheduler_pb2 as pb

from tests.integration.scheduler.world import World, check_sequence, kinds

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
