"""Verifies the memory for blobs that were read recently: its bound, overlapping reads, changes below it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from services.cache.directory import DirectoryBlobs
from services.cache.entries import make_blob_key
from services.cache.hot import HotBlobs
from tests.contract.samples import digest


def key(number: int) -> str:
    return make_blob_key("default", digest("identity"), digest(f"blob {number}"))


class CountedBlobs(DirectoryBlobs):
    """Directory that counts its reads and can hold them."""

    reads: Counter[str]
    go: asyncio.Event

    async def get(self, key: str, size_bytes: int) -> bytes | None:
        self.reads[key] += 1
        await self.go.wait()
        return await super().get(key, size_bytes)


@pytest.fixture
async def store(tmp_path: Path) -> CountedBlobs:
    blobs = await CountedBlobs.open(tmp_path, seconds=30, threads=4)
    assert isinstance(blobs, CountedBlobs)
    blobs.reads, blobs.go = Counter(), asyncio.Event()
    blobs.go.set()
    return blobs


async def test_second_read_comes_from_memory_and_the_oldest_makes_room(store: CountedBlobs) -> None:
    hot = HotBlobs(store, 2_000)
    for number in range(3):
        await hot.put(key(number), bytes([number]) * 1_000)
    for number in (0, 1, 0, 2):  # blob 1 is the least recently read when blob 2 needs room
        assert await hot.get(key(number), 1_000) == bytes([number]) * 1_000
    assert store.reads[key(0)] == 1
    await hot.get(key(0), 1_000)
    await hot.get(key(1), 1_000)
    assert (store.reads[key(0)], store.reads[key(1)]) == (1, 2)
    await hot.close()


async def test_blob_above_the_limit_is_not_kept(store: CountedBlobs) -> None:
    hot = HotBlobs(store, 999)
    await hot.put(key(0), bytes(1_000))
    assert [len(await hot.get(key(0), 1_000) or b"") for _ in range(2)] == [1_000, 1_000]
    assert store.reads[key(0)] == 2
    await hot.close()


async def test_overlapping_reads_are_one_and_outlive_a_caller_that_gives_up(store: CountedBlobs) -> None:
    hot = HotBlobs(store, 1 << 20)
    await hot.put(key(0), b"latents")
    store.go.clear()
    impatient = asyncio.create_task(hot.get(key(0), 7))
    others = [asyncio.create_task(hot.get(key(0), 7)) for _ in range(5)]
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    store.go.set()
    assert await asyncio.gather(*others) == [b"latents"] * 5
    assert store.reads[key(0)] == 1
    await hot.close()


async def test_read_that_a_deletion_overtakes_is_not_kept(store: CountedBlobs) -> None:
    hot = HotBlobs(store, 1 << 20)
    await hot.put(key(0), b"latents")
    store.go.clear()
    reading = asyncio.create_task(hot.get(key(0), 7))
    await asyncio.sleep(0)
    await hot.delete([key(0)])
    store.go.set()
    assert await reading in (None, b"latents")
    assert await hot.get(key(0), 7) is None
    await hot.close()


async def test_replaced_and_deleted_blobs_leave_memory(store: CountedBlobs) -> None:
    hot = HotBlobs(store, 1 << 20)
    await hot.put(key(0), b"altered")
    assert await hot.get(key(0), 7) == b"altered"
    await hot.put(key(0), b"latents")
    assert await hot.get(key(0), 7) == b"latents"
    await hot.delete([key(0)])
    assert await hot.get(key(0), 7) is None
    await hot.close()


async def test_read_past_memory_sees_what_the_store_has_and_memory_forgets_the_rest(
    store: CountedBlobs,
) -> None:
    hot = HotBlobs(store, 10_000)
    for number in range(2):
        await hot.put(key(number), bytes(100))
        await hot.get(key(number), 100)
    await store.delete([key(0)])
    assert await hot.get(key(0), 100) == bytes(100)
    assert await hot.get_stored(key(0), 100) is None
    assert await hot.get(key(0), 100) is None
    reads = store.reads[key(1)]
    assert await hot.get_stored(key(1), 100) == bytes(100)
    assert await hot.get(key(1), 100) == bytes(100)
    assert store.reads[key(1)] == reads + 1, "memory keeps a blob that is intact"
    await hot.close()
