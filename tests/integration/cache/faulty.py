"""An index and an object store that fail at random: before a call takes effect, or after it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from random import Random

import numpy as np
from chorus_rpc.errors import ChorusError, unavailable
from numpy.typing import NDArray

from services.cache.blobs import Blobs, BlobStat
from services.cache.entries import BLOB_ROOT, Entry, Space, Uses
from services.cache.index import Hit, Index, Selection

_SHARE = 0.15  # share of the calls that fail


class Faults:
    """Draws the fault of each call.

    Attributes:
        active: whether calls fail.
        drawn: number of faults by kind.
    """

    def __init__(self, seed: int) -> None:
        self.active = False
        self.drawn: Counter[str] = Counter()
        self._random = Random(seed)

    async def draw(self, *kinds: str) -> str:
        """Waits a little, then returns one of the kinds, or an empty string for a call that succeeds."""
        for _ in range(self._random.randrange(4)):
            await asyncio.sleep(0)
        if not self.active or self._random.random() >= _SHARE:
            return ""
        kind = self._random.choice(kinds)
        self.drawn[kind] += 1
        if kind == "stall":  # until the adapter's time limit
            await asyncio.sleep(0.01)
        return kind

    def flip_bit(self, data: bytes) -> bytes:
        place = self._random.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << self._random.randrange(8)]) + data[place + 1 :]

    def draw_part(self) -> str:
        return f"{self._random.getrandbits(128):032x}.part"


def _failed() -> ChorusError:
    return unavailable("store", "an injected fault")


class FaultyBlobs(Blobs):
    """Object store whose calls fail, lose their acknowledgement, or return altered blobs."""

    def __init__(self, blobs: Blobs, faults: Faults) -> None:
        self.kind = blobs.kind
        self._blobs = blobs
        self._faults = faults

    async def put(self, key: str, data: bytes) -> None:
        match await self._faults.draw("error", "stall", "partial write", "lost acknowledgement"):
            case "":
                await self._blobs.put(key, data)
                return
            case "partial write":
                folder = key.rpartition("/")[0]
                await self._blobs.put(f"{folder}/{self._faults.draw_part()}", data[: len(data) // 2])
            case "lost acknowledgement":
                await self._blobs.put(key, data)
        raise _failed()

    async def get(self, key: str, size_bytes: int) -> bytes | None:
        kind = await self._faults.draw("error", "stall", "truncation", "corruption", "missing")
        if kind in ("error", "stall"):
            raise _failed()
        data = await self._blobs.get(key, size_bytes)
        if data is None or kind == "missing":
            return None
        if kind == "truncation":
            return data[:-1]
        return self._faults.flip_bit(data) if kind == "corruption" else data

    async def stat(self, key: str) -> BlobStat | None:
        if await self._faults.draw("error", "stall"):
            raise _failed()
        return await self._blobs.stat(key)

    async def delete(self, keys: Sequence[str]) -> None:
        match await self._faults.draw("error", "stall", "half of a deletion", "lost acknowledgement"):
            case "":
                await self._blobs.delete(keys)
                return
            case "half of a deletion":
                await self._blobs.delete(keys[: len(keys) // 2])
            case "lost acknowledgement":
                await self._blobs.delete(keys)
        raise _failed()

    async def list(self, folder: str = BLOB_ROOT) -> AsyncIterator[Sequence[BlobStat]]:
        kind = await self._faults.draw("error", "half of a list")
        if kind == "error":
            raise _failed()
        async for page in self._blobs.list(folder):
            yield page
            if kind:
                raise _failed()

    async def close(self) -> None:
        await self._blobs.close()


class FaultyIndex(Index):
    """Index whose calls fail or lose their acknowledgement."""

    def __init__(self, index: Index, faults: Faults) -> None:
        self.kind, self.index_id = index.kind, index.index_id
        self._index = index
        self._faults = faults

    async def search(
        self,
        space: str,
        tenant: str,
        identity: str,
        vector: Sequence[float],
        limit: int,
        now_ms: int = 0,
    ) -> list[Hit]:
        if await self._faults.draw("error", "stall"):
            raise _failed()
        return await self._index.search(space, tenant, identity, vector, limit, now_ms)

    async def get(self, space: str, tenant: str, entry_id: str) -> Entry | None:
        if await self._faults.draw("error", "stall"):
            raise _failed()
        return await self._index.get(space, tenant, entry_id)

    async def read_vectors(
        self, space: str, tenant: str, entry_ids: Sequence[str]
    ) -> Mapping[str, tuple[Entry, NDArray[np.float32]]]:
        if await self._faults.draw("error", "stall"):
            raise _failed()
        return await self._index.read_vectors(space, tenant, entry_ids)

    async def upsert(self, space: Space, entry: Entry, vector: Sequence[float]) -> None:
        kind = await self._faults.draw("error", "stall", "lost acknowledgement")
        if kind in ("", "lost acknowledgement"):
            await self._index.upsert(space, entry, vector)
        if kind:
            raise _failed()

    async def add_uses(self, space: str, tenant: str, uses: Mapping[str, Uses]) -> None:
        kind = await self._faults.draw("error", "stall", "lost acknowledgement")
        if kind in ("", "lost acknowledgement"):
            await self._index.add_uses(space, tenant, uses)
        if kind:
            raise _failed()

    async def delete(self, space: str, tenant: str, entry_ids: Sequence[str]) -> None:
        match await self._faults.draw("error", "stall", "half of a deletion", "lost acknowledgement"):
            case "":
                await self._index.delete(space, tenant, entry_ids)
                return
            case "half of a deletion":
                await self._index.delete(space, tenant, entry_ids[: len(entry_ids) // 2])
            case "lost acknowledgement":
                await self._index.delete(space, tenant, entry_ids)
        raise _failed()

    async def spaces(self) -> list[str]:
        if await self._faults.draw("error"):
            raise _failed()
        return await self._index.spaces()

    async def select(self, space: str, tenant: str, selection: Selection) -> AsyncIterator[list[Entry]]:
        kind = await self._faults.draw("error", "half of a list")
        if kind == "error":
            raise _failed()
        async for page in self._index.select(space, tenant, selection):
            yield page[: (len(page) + 1) // 2] if kind else page
            if kind:
                raise _failed()

    async def every_entry(self, space: str) -> AsyncIterator[list[Entry]]:
        kind = await self._faults.draw("error", "half of a list")
        if kind == "error":
            raise _failed()
        async for page in self._index.every_entry(space):
            yield page[: (len(page) + 1) // 2] if kind else page
            if kind:
                raise _failed()

    async def close(self) -> None:
        await self._index.close()
