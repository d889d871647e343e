"""Verifies the port of the object store for every implementation."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path

import pytest
from chorus_rpc.errors import DEPENDENCY_UNAVAILABLE, ChorusError
from moto.server import ThreadedMotoServer

from services.cache.blobs import Blobs, BlobStat
from services.cache.directory import DirectoryBlobs
from services.cache.entries import make_blob_key
from services.cache.s3 import S3Blobs
from tests.contract.conftest import OpenBlobs
from tests.contract.samples import digest
from tests.processes import free_port

KEY = make_blob_key("default", digest("identity"), digest("blob"))


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def listed(blobs: Blobs) -> dict[str, BlobStat]:
    return {blob.key: blob async for page in blobs.list() for blob in page}


async def test_blob_is_returned_unchanged(blobs: Blobs) -> None:
    for size in (1, 1000, 6 << 20):
        data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        await blobs.put(KEY, data)
        assert await blobs.get(KEY, size) == data


async def test_second_put_replaces_the_blob(blobs: Blobs) -> None:
    await blobs.put(KEY, b"altered")
    await blobs.put(KEY, b"mended!")
    assert await blobs.get(KEY, 7) == b"mended!"
    assert list(await listed(blobs)) == [KEY]


async def test_parallel_puts_of_one_key_leave_one_complete_blob(blobs: Blobs) -> None:
    contents = [bytes([i]) * 200_000 for i in range(8)]
    await asyncio.gather(*(blobs.put(KEY, data) for data in contents))
    assert await blobs.get(KEY, 200_000) in contents
    assert list(await listed(blobs)) == [KEY]


async def test_missing_blob_is_none(blobs: Blobs) -> None:
    assert await blobs.get(KEY, 10) is None
    assert await blobs.stat(KEY) is None
    assert await listed(blobs) == {}
    await blobs.delete([KEY])
    await blobs.delete([])


async def test_blob_longer_than_expected_is_read_in_part(blobs: Blobs) -> None:
    await blobs.put(KEY, b"0123456789")
    assert await blobs.get(KEY, 4) == b"01234"


async def test_stat_returns_size_and_age(blobs: Blobs) -> None:
    before = time.time()
    await blobs.put(KEY, b"0123456789")
    found = await blobs.stat(KEY)
    assert found is not None
    assert (found.key, found.size_bytes) == (KEY, 10)
    # S3 reports whole seconds.
    assert before - 2 <= found.modified_ms / 1000 <= time.time() + 2
    assert (await listed(blobs))[KEY].size_bytes == 10


async def test_every_blob_is_listed_and_deleted_once(blobs: Blobs) -> None:
    keys = [make_blob_key(f"t{i % 3}", digest(str(i % 7)), digest(f"blob {i}")) for i in range(505)]
    for start in range(0, len(keys), 50):
        await asyncio.gather(*(blobs.put(key, b"x") for key in keys[start : start + 50]))
    assert set(await listed(blobs)) == set(keys)
    await blobs.delete(keys[:500])
    assert set(await listed(blobs)) == set(keys[500:])


async def test_blobs_survive_reopening(open_blobs: OpenBlobs) -> None:
    first = await open_blobs()
    await first.put(KEY, b"kept")
    await first.close()
    again = await open_blobs()
    assert await again.get(KEY, 4) == b"kept"
    await again.close()


async def test_partial_write_is_listed_and_can_be_deleted(tmp_path: Path) -> None:
    blobs = await DirectoryBlobs.open(tmp_path, seconds=5, threads=2)
    part = str(Path(KEY).with_name(f"{uuid.uuid4().hex}.part"))
    (tmp_path / part).parent.mkdir(parents=True)
    (tmp_path / part).write_bytes(b"half")
    assert list(await listed(blobs)) == [part]
    await blobs.delete([part])
    assert await listed(blobs) == {}
    await blobs.close()


@pytest.mark.parametrize("key", ["../x", "v1/../../x", "/etc/passwd", "v2/x", "v1/a/../../v1x"])
async def test_key_outside_the_root_is_rejected(tmp_path: Path, key: str) -> None:
    blobs = await DirectoryBlobs.open(tmp_path / "blobs", seconds=5, threads=1)
    with pytest.raises(ValueError, match="not a key"):
        await blobs.put(key, b"x")
    with pytest.raises(ValueError, match="not a key"):
        await blobs.get(key, 1)
    await blobs.close()
    assert files_below(tmp_path) == []


async def test_unwritable_directory_is_named(tmp_path: Path) -> None:
    blobs = await DirectoryBlobs.open(tmp_path, seconds=5, threads=1)
    # A file in place of a directory: the write fails for every user, even root.
    (tmp_path / "v1" / "default").write_bytes(b"")
    with pytest.raises(ChorusError) as failed:
        await blobs.put(KEY, b"x")
    assert failed.value.reason == DEPENDENCY_UNAVAILABLE
    assert failed.value.metadata == {"service": "blob directory"}
    await blobs.close()


async def test_open_waits_for_a_missing_endpoint() -> None:
    opening = S3Blobs.open(
        endpoint=f"127.0.0.1:{free_port()}",
        bucket="chorus",
        access_key="a",
        secret_key="s",
        secure=False,
        region="us-east-1",
        seconds=0.3,
        threads=1,
    )
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(opening, 1.5)


async def test_lost_endpoint_is_named() -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        blobs = await S3Blobs.open(
            endpoint=f"{host}:{port}",
            bucket="chorus",
            access_key="a",
            secret_key="s",
            secure=False,
            region="us-east-1",
            seconds=5,
            threads=1,
        )
        await blobs.put(KEY, b"x")
    finally:
        server.stop()
    with pytest.raises(ChorusError) as failed:
        await blobs.get(KEY, 1)
    await blobs.close()
    assert failed.value.reason == DEPENDENCY_UNAVAILABLE
    assert failed.value.metadata == {"service": "s3"}
    assert failed.value.retry_after is not None
