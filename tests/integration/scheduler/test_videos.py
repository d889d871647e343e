"""Verifies ranges, thumbnails and URLs of videos by the real process, with a directory and with a bucket."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from chorus.common.v1 import errors_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.errors import ChorusError, from_rpc_error
from google.protobuf.duration_pb2 import Duration
from moto.server import ThreadedMotoServer

from tests.integration.scheduler.fakes import THUMBNAIL, VIDEO, video_info
from tests.integration.scheduler.world import World

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """An S3 server in memory; yields the scheduler's settings for it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "CHORUS_SCHEDULER_VIDEO_STORE": "s3://chorus-videos/finished",
        "CHORUS_SCHEDULER_S3_ENDPOINT": f"{host}:{port}",
        "CHORUS_SCHEDULER_S3_ACCESS_KEY": "access",
        "CHORUS_SCHEDULER_S3_SECRET_KEY": "secret-of-the-store",
        "CHORUS_SCHEDULER_S3_SECURE": "false",
        "CHORUS_SCHEDULER_S3_REGION": "us-east-1",
    }
    server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["directory", "s3"])
async def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, s3: dict[str, str]
) -> AsyncIterator[World]:
    settings = s3 if request.param == "s3" else {}
    async with World(tmp_path_factory.mktemp("scheduler"), settings) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


async def rejected(call: Any) -> tuple[grpc.StatusCode, ChorusError]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), from_rpc_error(caught.value, "scheduler")


async def succeed(world: World) -> pb.Generation:
    job = await world.submit()
    await world.events(job)
    return await world.get(job)


def thumbnail_of(world: World, job: pb.Generation) -> Any:
    return world.api.GetThumbnail(pb.GetThumbnailRequest(generation_id=job.generation_id), timeout=20)


def url_of(world: World, job: pb.Generation, lifetime: Duration | None = None) -> Any:
    request = pb.GetVideoUrlRequest(generation_id=job.generation_id, lifetime=lifetime)
    return world.api.GetVideoUrl(request, timeout=20)


async def test_range_of_a_video_has_the_header_of_the_whole(world: World) -> None:
    job = await succeed(world)
    assert await world.video(job) == (video_info(), VIDEO)
    for offset, length in ((1, 0), (len(VIDEO) - 1, 1), (1 << 20, 3), (0, len(VIDEO))):
        end = offset + length if length else None
        assert await world.video(job, offset, length) == (video_info(), VIDEO[offset:end])


@pytest.mark.parametrize(
    ("offset", "length", "field"),
    [(len(VIDEO), 0, "offset"), (2**63, 0, "offset"), (1, len(VIDEO), "length"), (0, 2**64 - 1, "length")],
)
async def test_range_outside_the_video_is_rejected(
    world: World, offset: int, length: int, field: str
) -> None:
    job = await succeed(world)
    code, error = await rejected(world.video(job, offset, length))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == [field]


async def test_thumbnail_is_kept_with_its_video(world: World) -> None:
    job = await succeed(world)
    reply = await thumbnail_of(world, job)
    assert (reply.info, reply.data) == (job.video.thumbnail, THUMBNAIL)
    await world.api.DeleteGeneration(pb.DeleteGenerationRequest(generation_id=job.generation_id), timeout=20)
    assert (await rejected(thumbnail_of(world, job)))[0] is grpc.StatusCode.NOT_FOUND


async def test_missing_or_damaged_thumbnail_costs_no_video(world: World) -> None:
    for thumbnail in (b"", b"another picture"):
        world.denoiser.thumbnail = thumbnail
        job = await succeed(world)
        assert not job.video.HasField("thumbnail")
        assert not job.warnings
        assert (await world.video(job))[1] == VIDEO
        code, error = await rejected(thumbnail_of(world, job))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "no thumbnail" in error.message
    assert "thumbnail rejected" in world.process.log.read_text()


async def test_generation_without_a_video_has_neither_thumbnail_nor_url(world: World) -> None:
    world.denoiser.pause_before = 1
    job = await world.submit()
    for call in (thumbnail_of(world, job), url_of(world, job)):
        code, error = await rejected(call)
        assert (code, error.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            errors_pb2.ERROR_REASON_WRONG_STATE,
        )
        assert "has no video" in error.message


@pytest.mark.parametrize("seconds", [0.999, 7 * 86_400 + 1, -1])
async def test_lifetime_of_a_url_is_bounded(world: World, seconds: float) -> None:
    lifetime = Duration()
    lifetime.FromNanoseconds(round(seconds * 1e9))
    code, error = await rejected(url_of(world, await succeed(world), lifetime))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == ["lifetime"]


async def test_url_serves_the_video_from_a_bucket_only(world: World) -> None:
    job = await succeed(world)
    if "CHORUS_SCHEDULER_VIDEO_STORE" not in world.settings:
        code, error = await rejected(url_of(world, job))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert error.metadata["setting"] == "CHORUS_SCHEDULER_VIDEO_STORE"
        return
    reply = await url_of(world, job, Duration(seconds=90))
    before = (await url_of(world, job)).expire_time.seconds
    assert 3_600 - 90 - 5 <= before - reply.expire_time.seconds <= 3_600 - 90 + 5
    assert await asyncio.to_thread(download, reply.url) == VIDEO
    assert "secret-of-the-store" not in reply.url + world.process.log.read_text()
    assert reply.url not in world.process.log.read_text()


def download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        data: bytes = response.read()
    return data


async def test_video_waits_for_the_object_store(tmp_path: Path) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "CHORUS_SCHEDULER_VIDEO_STORE": "s3://chorus-videos",
        "CHORUS_SCHEDULER_S3_ENDPOINT": f"{host}:{port}",
        "CHORUS_SCHEDULER_S3_ACCESS_KEY": "access",
        "CHORUS_SCHEDULER_S3_SECRET_KEY": "secret",
        "CHORUS_SCHEDULER_S3_SECURE": "false",
        "CHORUS_SCHEDULER_S3_REGION": "us-east-1",
    }
    async with World(tmp_path, settings) as world:
        done = await succeed(world)
        world.denoiser.pause_before = 1
        job = await world.submit("waits")
        server.stop()
        world.denoiser.go.set()
        *_, warning = await world.events(job, until="warning")
        assert warning.warning.warning.reason == errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
        code, error = await rejected(world.video(done))
        assert (code, error.reason) == (
            grpc.StatusCode.UNAVAILABLE,
            errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        )
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        try:
            await world.events(job)
            assert (await world.get(job)).state == pb.GENERATION_STATE_SUCCEEDED
            assert len(world.denoiser.requests) == 2, "the run is not repeated"
            assert (await world.video(job))[1] == VIDEO
        finally:
            server.stop()
