"""Verifies downloads by the SDK and the command line: broken ones, ranges, thumbnails and URLs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from chorus_client import AsyncChorusClient, ChorusClient, ChorusError
from chorus_client.downloads import Download
from chorus_rpc import errors

from tests.integration.client.fakes import CHUNK, THUMBNAIL, VIDEO, FakeDeployment, deployment_in_thread
from tests.integration.client.test_cli import chorus


@pytest.fixture
async def client(deployment: FakeDeployment) -> AsyncIterator[AsyncChorusClient]:
    async with AsyncChorusClient(deployment.target) as running:
        yield running


async def test_broken_download_continues_where_it_stopped(
    client: AsyncChorusClient, deployment: FakeDeployment, tmp_path: Path
) -> None:
    handle = await client.submit("x")
    deployment.scheduler.video_drops = [2, 0, 3]
    path = await handle.save(tmp_path / "x.mp4", patience=0.2)
    assert path.read_bytes() == VIDEO
    assert [offset for offset, _ in deployment.scheduler.ranges] == [0, 2 * CHUNK, 2 * CHUNK, 5 * CHUNK]


async def test_download_without_progress_ends_after_the_patience(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    handle = await client.submit("x")
    deployment.scheduler.video_drops = [1, *[0] * 1_000]
    with pytest.raises(ChorusError) as caught:
        await handle.result(patience=0.2)
    assert caught.value.reason == errors.DEPENDENCY_UNAVAILABLE
    assert {offset for offset, _ in deployment.scheduler.ranges[1:]} == {CHUNK}


async def test_video_that_changes_during_the_download_is_rejected(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    handle = await client.submit("x")
    deployment.scheduler.video_drops = [1]
    download = Download(handle._connection, handle.id)
    with pytest.raises(ChorusError, match="nothing answers"):
        await download.run(30)
    deployment.scheduler.damage_video = True
    with pytest.raises(ChorusError, match="changed during the download") as caught:
        await download.run(30)
    assert caught.value.reason == errors.BLOB_CORRUPT


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (5, 0), (CHUNK - 1, 2), (0, 1)])
async def test_range_has_its_bytes(client: AsyncChorusClient, offset: int, length: int) -> None:
    handle = await client.submit("x")
    end = offset + length if length else None
    assert await handle.video(offset=offset, length=length) == VIDEO[offset:end]


async def test_short_range_is_rejected(client: AsyncChorusClient) -> None:
    """The scripted scheduler sends fewer bytes in place of an error."""
    handle = await client.submit("x")
    with pytest.raises(ChorusError, match="5 bytes in place of 6") as caught:
        await handle.video(offset=len(VIDEO) - 5, length=6)
    assert caught.value.reason == errors.BLOB_CORRUPT


@pytest.mark.parametrize("value", [-1, 1 << 64, 1.0, True])
async def test_range_that_is_no_number_of_bytes_is_rejected(client: AsyncChorusClient, value: int) -> None:
    handle = await client.submit("x")
    for field in ("offset", "length"):
        with pytest.raises(ChorusError, match=f"{field}: must be 0 to 2"):
            await handle.video(**{field: value})


def test_sync_client_has_the_same_methods(tmp_path: Path) -> None:
    with deployment_in_thread(FakeDeployment) as deployment, ChorusClient(deployment.target) as client:
        handle = client.submit("x")
        assert handle.video(offset=1, length=2) == VIDEO[1:3]
        picture = handle.thumbnail()
        assert (picture.media_type, picture.height, picture.width) == ("image/jpeg", 180, 320)
        assert picture.save(tmp_path / "x.jpg").read_bytes() == THUMBNAIL
        found = handle.url(lifetime=60)
        assert found.url == "http://store/gen-1?signature"
        assert found.expires == datetime.fromtimestamp(1_800_000_060, UTC)
        assert "signature" not in repr(found), "whoever has the URL can read the video"
        assert handle.url().expires == datetime.fromtimestamp(1_800_003_600, UTC)
        with pytest.raises(ChorusError, match="lifetime: must be a number of seconds"):
            handle.url(lifetime=float("nan"))


def test_get_saves_the_thumbnail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with deployment_in_thread(FakeDeployment) as deployment, ChorusClient(deployment.target) as client:
        client.submit("x")
        client.submit("warn, it has no thumbnail")
        result = chorus("get", "gen-1", "--thumbnail", "x.jpg", target=deployment.target)
        assert (result.exit_code, result.stdout) == (0, "x.jpg: 320 x 180\n"), result.output
        assert [path.name for path in tmp_path.iterdir()] == ["x.jpg"]
        assert (tmp_path / "x.jpg").read_bytes() == THUMBNAIL
        both = ("get", "gen-1", "--thumbnail", "y.jpg", "-o", "y.mp4")
        assert chorus(*both, target=deployment.target).exit_code == 0
        assert (tmp_path / "y.mp4").read_bytes() == VIDEO
        result = chorus("get", "gen-2", "--thumbnail", "z.jpg", target=deployment.target)
        assert (result.exit_code, result.stderr) == (2, "error: the video has no thumbnail\n")


def test_url_prints_the_address_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with deployment_in_thread(FakeDeployment) as deployment, ChorusClient(deployment.target) as client:
        client.submit("x")
        result = chorus("url", "gen-1", "--lifetime", "1m", target=deployment.target)
        assert (result.exit_code, result.stdout) == (0, "http://store/gen-1?signature\n"), result.output
        assert result.stderr == "valid until 2027-01-15 08:01:00 UTC\n"
        result = chorus("url", "gen-1", "--json", target=deployment.target)
        assert json.loads(result.stdout) == {
            "url": "http://store/gen-1?signature",
            "expires": "2027-01-15T09:00:00+00:00",
        }
        deployment.scheduler.urls = False
        result = chorus("url", "gen-1", target=deployment.target)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "stores videos in a directory" in result.stderr
