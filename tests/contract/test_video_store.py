"""Verifies the port of the store of finished videos for every implementation."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from chorus.common.v1 import video_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.chunks import CHUNK_BYTES, sha256
from chorus_rpc.errors import ChorusError
from moto.server import ThreadedMotoServer

from services.runtime.startup import StartupError
from services.scheduler.jobs.passing_faults import PassingFault
from services.scheduler.jobs.sql_store import open_store
from services.scheduler.jobs.store import NewJob
from services.scheduler.jobs.video_bucket import VideoBucket
from services.scheduler.jobs.video_files import VideoFiles
from services.scheduler.jobs.video_store import Item, VideoStore
from services.scheduler.jobs.video_sweeper import VideoSweeper
from services.scheduler.settings import SchedulerSettings
from tests.contract.conftest import require_variable

OpenVideos = Callable[[], Awaitable[VideoStore]]

ONE, TWO, THREE = "1" * 32, "2" * 32, "3" * 32
VIDEO = bytes(range(256)) * (CHUNK_BYTES // 256) * 5 + b"the end"  # more than is read at once
INFO = video_pb2.VideoInfo(size_bytes=len(VIDEO), digest=sha256(VIDEO))
PICTURE = b"\xff\xd8 a picture"
PICTURE_INFO = video_pb2.ImageInfo(size_bytes=len(PICTURE), digest=sha256(PICTURE))
BUCKETS = ["s3-memory", pytest.param("s3", marks=pytest.mark.servers)]


def make_settings(
    endpoint: str, bucket: str, access_key: str = "access", secret_key: str = "secret", **settings: object
) -> SchedulerSettings:
    return SchedulerSettings.model_validate(
        {
            "video_store": f"s3://{bucket}/some/videos",
            "video_seconds": 30.0,
            "s3_endpoint": endpoint.removeprefix("http://"),
            "s3_access_key": access_key,
            "s3_secret_key": secret_key,
            "s3_secure": False,
            "s3_region": "us-east-1",
            **settings,
        }
    )


def bucket_settings(request: pytest.FixtureRequest) -> SchedulerSettings:
    bucket = f"chorus-test-{uuid.uuid4().hex[:12]}"
    if request.param == "s3-memory":
        return make_settings(request.getfixturevalue("moto"), bucket)
    names = ("CHORUS_TEST_S3_ENDPOINT", "CHORUS_TEST_S3_ACCESS_KEY", "CHORUS_TEST_S3_SECRET_KEY")
    endpoint, access_key, secret_key = map(require_variable, names)
    return make_settings(endpoint, bucket, access_key, secret_key)


@pytest.fixture(params=["directory", *BUCKETS])
async def open_videos(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenVideos]:
    """Opens the same store at every call; each test has its own."""
    settings = None if request.param == "directory" else bucket_settings(request)
    opened: list[VideoStore] = []

    async def open_one() -> VideoStore:
        videos = VideoFiles(tmp_path / "videos") if settings is None else VideoBucket(settings)
        await videos.open()
        opened.append(videos)
        return videos

    yield open_one
    for videos in opened:
        await videos.close()


@pytest.fixture
async def videos(open_videos: OpenVideos) -> VideoStore:
    return await open_videos()


@pytest.fixture(params=BUCKETS)
async def bucket(request: pytest.FixtureRequest) -> AsyncIterator[VideoBucket]:
    videos = VideoBucket(bucket_settings(request))
    await videos.open()
    yield videos
    await videos.close()


async def read(
    videos: VideoStore,
    job_id: str = ONE,
    attempt: int = 1,
    info: video_pb2.VideoInfo | video_pb2.ImageInfo = INFO,
    offset: int = 0,
    length: int = 0,
) -> bytes:
    chunks = [chunk async for chunk in videos.read(job_id, attempt, info, offset, length)]
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)
    return b"".join(chunks)


async def list_ids(videos: VideoStore) -> list[str]:
    return sorted([job.job_id async for page in videos.list_jobs() for job in page])


async def test_items_of_an_attempt_are_read_as_saved(open_videos: OpenVideos) -> None:
    videos = await open_videos()
    await videos.save(ONE, 1, Item.VIDEO, VIDEO)
    await videos.save(ONE, 1, Item.THUMBNAIL, PICTURE)
    again = await open_videos()
    assert await read(again) == VIDEO
    assert await read(again, info=PICTURE_INFO) == PICTURE
    assert await again.find_size(ONE, 1, Item.VIDEO) == len(VIDEO)
    assert await again.find_size(ONE, 2, Item.VIDEO) is None


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 1),
        (1, 0),
        (len(VIDEO) - 1, 0),
        (CHUNK_BYTES - 1, 2),
        (3, 4 * CHUNK_BYTES),
        (4 * CHUNK_BYTES, 5),
        (0, len(VIDEO)),
    ],
)
async def test_range_has_exactly_its_bytes(videos: VideoStore, offset: int, length: int) -> None:
    await videos.save(ONE, 1, Item.VIDEO, VIDEO)
    end = offset + length if length else None
    assert await read(videos, offset=offset, length=length) == VIDEO[offset:end]


async def test_missing_or_altered_video_is_rejected(videos: VideoStore) -> None:
    for data, fault in (
        (None, "missing"),
        (VIDEO[:-1], "not as long"),
        (VIDEO + b"!", "not as long"),
        (VIDEO[:-1] + b"!", "altered"),
    ):
        if data is not None:
            await videos.save(ONE, 1, Item.VIDEO, data)
        with pytest.raises(ChorusError, match=fault) as caught:
            await read(videos)
        assert caught.value.reason == errors.BLOB_CORRUPT
        assert ONE in caught.value.message
    with pytest.raises(ChorusError, match=r"thumbnail .* is missing"):
        await read(videos, info=PICTURE_INFO)


async def test_video_that_is_removed_while_it_is_read_is_missing(videos: VideoStore) -> None:
    await videos.save(ONE, 1, Item.VIDEO, VIDEO)
    chunks = videos.read(ONE, 1, INFO)
    assert await anext(chunks) == VIDEO[:CHUNK_BYTES]
    await videos.remove([ONE])
    with pytest.raises(ChorusError, match="is missing"):
        async for _ in chunks:
            pass


async def test_attempts_do_not_touch_each_other(videos: VideoStore) -> None:
    for job_id, attempt in ((ONE, 1), (ONE, 2), (TWO, 1)):
        await videos.save(job_id, attempt, Item.VIDEO, VIDEO)
        await videos.save(job_id, attempt, Item.THUMBNAIL, PICTURE)
    await videos.discard(ONE, 1)
    assert await videos.find_size(ONE, 1, Item.VIDEO) is None
    assert await videos.find_size(ONE, 1, Item.THUMBNAIL) is None
    assert await read(videos, ONE, 2) == VIDEO
    await videos.remove([ONE, THREE])
    assert await videos.find_size(ONE, 2, Item.VIDEO) is None
    assert await list_ids(videos) == [TWO]
    await videos.remove([])
    await videos.discard(THREE, 1)
    assert await read(videos, TWO, 1) == VIDEO


async def test_second_save_replaces_the_item(videos: VideoStore) -> None:
    await videos.save(ONE, 1, Item.VIDEO, b"half")
    await videos.save(ONE, 1, Item.VIDEO, VIDEO)
    assert await read(videos) == VIDEO


async def test_cancelled_save_ends_before_its_caller_continues(videos: VideoStore) -> None:
    saving = asyncio.create_task(videos.save(ONE, 1, Item.VIDEO, VIDEO))
    await asyncio.sleep(0)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    await videos.discard(ONE, 1)
    assert await videos.find_size(ONE, 1, Item.VIDEO) is None


async def test_every_job_is_listed_once_with_its_latest_write(videos: VideoStore) -> None:
    ids = [f"{number:032x}" for number in range(505)]
    before = time.time()
    for start in range(0, len(ids), 50):
        await asyncio.gather(
            *(videos.save(each, 1, Item.THUMBNAIL, PICTURE) for each in ids[start : start + 50])
        )
    await videos.save(ids[0], 2, Item.VIDEO, VIDEO)
    await videos.write_mark("d" * 32, owned=True)
    pages = [page async for page in videos.list_jobs()]
    assert max(map(len, pages)) == 500
    assert sorted(job.job_id for page in pages for job in page) == ids
    # S3 reports whole seconds.
    assert all(before - 2 <= job.modified <= time.time() + 2 for page in pages for job in page)


async def test_marks_name_the_databases(videos: VideoStore) -> None:
    assert await videos.read_marks() == {}
    await videos.write_mark("a", owned=True)
    await videos.write_mark("b", owned=False)
    assert await videos.read_marks() == {"a": True, "b": False}
    await videos.write_mark("a", owned=False)
    assert await videos.read_marks() == {"a": False, "b": False}
    assert await list_ids(videos) == []


async def test_sweep_removes_old_videos_without_a_job(videos: VideoStore, tmp_path: Path) -> None:
    store = await open_store(str(tmp_path / "jobs.db"), lambda _: None)
    other = await open_store(str(tmp_path / "other.db"), lambda _: None)
    try:
        await store.submit(new_job(ONE), 10)
        await videos.save(ONE, 1, Item.VIDEO, b"kept")
        sweeper = VideoSweeper(store, videos)
        soon = time.time() + 60
        assert await sweeper.sweep(soon) == 0  # finds no unknown video, and marks the store
        for item in Item:
            await videos.save(TWO, 1, item, b"left by a crash")
        assert await sweeper.sweep(time.time() - 60) == 0, "within the period of grace"
        assert await list_ids(videos) == [ONE, TWO]
        assert await sweeper.sweep(soon) == 1
        assert await list_ids(videos) == [ONE]
        # Another deployment begins to use the store.
        assert await VideoSweeper(other, videos).sweep(soon) == 0
        await videos.save(TWO, 1, Item.VIDEO, b"of the other deployment")
        assert await sweeper.sweep(soon) == 0
        assert await VideoSweeper(other, videos).sweep(soon) == 0
        assert await list_ids(videos) == [ONE, TWO]
    finally:
        await store.close()
        await other.close()


async def test_sweep_keeps_videos_from_before_its_mark(videos: VideoStore, tmp_path: Path) -> None:
    store = await open_store(str(tmp_path / "jobs.db"), lambda _: None)
    try:
        await videos.save(TWO, 1, Item.VIDEO, b"perhaps of another deployment")
        sweeper = VideoSweeper(store, videos)
        for _ in range(2):
            assert await sweeper.sweep(time.time() + 60) == 0
        assert await list_ids(videos) == [TWO]
        await videos.remove([TWO])  # by hand
        assert await sweeper.sweep(time.time() + 60) == 0
        assert await videos.read_marks() == {await store.database_id(): True}
    finally:
        await store.close()


def new_job(job_id: str) -> NewJob:
    return NewJob(job_id, "default", f"r-{job_id}", "d", pb.GenerationSpec(), 2e9, "", "")


async def test_directory_has_no_url(tmp_path: Path) -> None:
    videos = VideoFiles(tmp_path)
    await videos.save(ONE, 1, Item.VIDEO, VIDEO)
    assert await videos.make_url(ONE, 1, 60) is None


async def test_directory_reads_and_removes_videos_of_earlier_versions(tmp_path: Path) -> None:
    videos = VideoFiles(tmp_path)
    (tmp_path / f"{ONE}.mp4").write_bytes(VIDEO)
    assert await read(videos) == VIDEO
    assert await list_ids(videos) == [ONE]
    await videos.remove([ONE])
    assert await list_ids(videos) == []
    assert not (tmp_path / f"{ONE}.mp4").exists()


async def test_url_serves_the_video_by_http(bucket: VideoBucket) -> None:
    await bucket.save(ONE, 1, Item.VIDEO, VIDEO)
    url = await bucket.make_url(ONE, 1, 60)
    assert url is not None
    status, headers, body = await asyncio.to_thread(fetch, url)
    assert (status, body, headers["content-type"]) == (200, VIDEO, "video/mp4")
    status, headers, body = await asyncio.to_thread(fetch, url, "bytes=5-1048580")
    assert (status, body) == (206, VIDEO[5:1_048_581])
    assert headers["content-range"] == f"bytes 5-1048580/{len(VIDEO)}"


@pytest.mark.servers
async def test_url_of_a_real_server_is_for_one_video(request: pytest.FixtureRequest) -> None:
    """A server in memory verifies no signatures."""
    request.param = "s3"
    bucket = VideoBucket(bucket_settings(request))
    await bucket.open()
    try:
        await bucket.save(ONE, 1, Item.VIDEO, VIDEO)
        await bucket.save(TWO, 1, Item.VIDEO, VIDEO)
        url = await bucket.make_url(ONE, 1, 60)
        assert url is not None
        for other in (url.replace(ONE, TWO), url.replace("X-Amz-Expires=60", "X-Amz-Expires=600")):
            with pytest.raises(urllib.error.HTTPError) as refused:
                await asyncio.to_thread(fetch, other)
            assert refused.value.code == 403
    finally:
        await bucket.close()


def fetch(url: str, range_header: str = "") -> tuple[int, dict[str, str], bytes]:
    headers = {"Range": range_header} if range_header else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as response:
        return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read()


@pytest.mark.servers
async def test_wrong_keys_end_the_start(request: pytest.FixtureRequest) -> None:
    request.param = "s3"
    settings = bucket_settings(request)
    wrong = make_settings(
        settings.s3_endpoint, "chorus", settings.s3_access_key.get_secret_value(), "hush-hush"
    )
    with pytest.raises(StartupError, match="CHORUS_SCHEDULER_S3_SECRET_KEY") as refused:
        await VideoBucket(wrong).open()
    assert "hush-hush" not in str(refused.value)


async def test_lost_object_store_is_a_fault_that_passes() -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    videos = VideoBucket(make_settings(f"{host}:{port}", "chorus", video_seconds=5.0))
    try:
        await videos.open()
        await videos.save(ONE, 1, Item.VIDEO, VIDEO)
    finally:
        server.stop()
    for attempted in (videos.save(ONE, 2, Item.VIDEO, VIDEO), read(videos), videos.remove([ONE])):
        with pytest.raises(PassingFault, match="object store of the videos is not available") as caught:
            await attempted
        assert caught.value.reason == errors.DEPENDENCY_UNAVAILABLE
        assert caught.value.metadata["setting"] == "CHORUS_SCHEDULER_VIDEO_STORE"
    await videos.close()
