"""Recently read blobs in memory, before an object store that is slow to reach.

Keys name their contents by digest, so a blob never changes: one that another process deleted is still right
here, and no row names it. Reads of one blob that overlap are one read of the store.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence

from services.cache.blobs import Blobs, BlobStat
from services.cache.entries import BLOB_ROOT


class HotBlobs(Blobs):
    """Keeps at most `limit` bytes of what was read from another object store, which it owns."""

    def __init__(self, blobs: Blobs, limit: int) -> None:
        self.kind = blobs.kind
        self._blobs = blobs
        self._limit = limit
        self._held: OrderedDict[str, bytes] = OrderedDict()  # least recently read first
        self._bytes = 0
        self._running: dict[str, asyncio.Task[bytes | None]] = {}
        self.hits = 0  # reads that memory answered
        self.misses = 0  # all others
        self._dropped = 0  # number of writes and deletions, after which a running read is not kept

    async def put(self, key: str, data: bytes) -> None:
        self._drop(key)
        await self._blobs.put(key, data)

    async def get(self, key: str, size_bytes: int) -> bytes | None:
        if (data := self._held.get(key)) is not None and len(data) <= size_bytes + 1:
            self._held.move_to_end(key)
            self.hits += 1
            return data
        self.misses += 1
        reading = self._running.get(key)
        if reading is None:
            reading = asyncio.create_task(self._read(key, size_bytes))
            self._running[key] = reading
            reading.add_done_callback(lambda task: self._end(key, task))
        # A caller that gives up must not end the read for the others.
        return await asyncio.shield(reading)

    async def get_stored(self, key: str, size_bytes: int) -> bytes | None:
        data = await self._blobs.get_stored(key, size_bytes)
        if data != self._held.get(key, data):
            self._drop(key)  # later reads are to find what the store has
        return data

    async def stat(self, key: str) -> BlobStat | None:
        return await self._blobs.stat(key)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._drop(key)
        await self._blobs.delete(keys)

    async def list(self, folder: str = BLOB_ROOT) -> AsyncIterator[Sequence[BlobStat]]:
        async for page in self._blobs.list(folder):
            yield page

    async def close(self) -> None:
        if self._running:
            await asyncio.wait(self._running.values())
        self._held.clear()
        await self._blobs.close()

    async def _read(self, key: str, size_bytes: int) -> bytes | None:
        before = self._dropped
        data = await self._blobs.get(key, size_bytes)
        if data is not None and len(data) == size_bytes <= self._limit and before == self._dropped:
            self._held[key] = data
            self._bytes += len(data)
            while self._bytes > self._limit:
                self._bytes -= len(self._held.popitem(last=False)[1])
        return data

    def _end(self, key: str, task: asyncio.Task[bytes | None]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # retrieved here too, because every caller may have given up

    def _drop(self, key: str) -> None:
        self._dropped += 1
        if (data := self._held.pop(key, None)) is not None:
            self._bytes -= len(data)
