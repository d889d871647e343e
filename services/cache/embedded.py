"""Vector index inside this process: Milvus Lite keeps the rows, and memory answers every read.

Milvus Lite copies all rows that it has not flushed for each search, and its one thread serves searches and
maintenance alike. Its directory belongs to one process, so this one may keep all rows in memory: they are
read once at the start, and change with each write that Milvus Lite has acknowledged.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from chorus_rpc.errors import DISK_FULL, ChorusError, unavailable
from numpy.typing import NDArray

from services.cache.blocking_client import BlockingClient
from services.cache.disk_space import DiskReserve, disk_full
from services.cache.entries import Entry, Space, Uses
from services.cache.filters import make_filter
from services.cache.index import Hit, Selection
from services.cache.layout import FIELDS, to_entry, to_row
from services.cache.lite_faults import describe_lite_fault
from services.cache.milvus import MilvusIndex, connect, make_client
from services.cache.rows import Rows, unpack
from services.runtime.logs import get_logger
from services.runtime.startup import StartupError

log = get_logger("cache.embedded")

_PAGE = 50  # entries of a page, about 2 ms, for which lookups wait
_LOAD_PAGE = 2_000  # rows that are read at once at the start
_OPEN_SECONDS = 60.0  # importing and recovering Milvus Lite takes longer than any operation
_SMALL = 20_000  # rows that are searched in 3 ms, faster than another thread gets its turn
# Rows that Milvus Lite has not flushed take about 30 times their size in memory.
_MEMTABLE_BYTES = 8 << 20


class EmbeddedIndex(MilvusIndex):
    """Index in Milvus Lite, whose single thread serialises all writes. Create it with `open_path`."""

    kind = "milvus-lite"

    def __init__(self, milvus: Any, client: BlockingClient, uri: str, index_id: str, seconds: float) -> None:
        super().__init__(milvus, client, uri, index_id, seconds)
        # A deletion needs room for its log.
        self._reserve = DiskReserve(Path(f"{uri}.reserve"))
        # Spaces whose log may end in part of a row. Milvus Lite would append to it, and lose at the next
        # start what it acknowledged since.
        self._torn: set[str] = set()
        self._rows: dict[str, Rows] = {}
        self._lock = threading.Lock()  # the thread of Milvus Lite changes rows, others read them

    @classmethod
    async def open_path(cls, path: str, *, seconds: float) -> EmbeddedIndex:
        """Opens the directory `path`, which ends in ".db", and reads all rows.

        Raises StartupError for every fault: Milvus Lite runs in this process.

        Args:
            seconds: upper bound on one operation, in seconds.
        """
        os.environ.setdefault("MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES", str(_MEMTABLE_BYTES))
        await asyncio.to_thread(Path(path).parent.mkdir, parents=True, exist_ok=True)
        client = make_client(1, seconds)
        limit = max(seconds, _OPEN_SECONDS)
        milvus, index_id = await connect(client, seconds, limit, describe_lite_fault, uri=path)
        index = cls(milvus, client, path, index_id, seconds)
        try:
            for space in await super(EmbeddedIndex, index).spaces():
                await index._load_rows(space)
        except ChorusError as error:
            if (fault := describe_lite_fault(error, path)) is None:
                raise
            await index.close()
            raise StartupError(fault) from error
        await client.run(index._reserve.fill)
        return index

    async def _load_rows(self, space: str) -> None:
        def start() -> Any:
            self._load(space)
            return self._milvus.query_iterator(
                space,
                batch_size=_LOAD_PAGE,
                filter="",
                output_fields=[*FIELDS, "vector"],
                timeout=self._seconds,
            )

        rows = self._rows[space] = Rows()
        pages = await self._client.run(start)
        try:
            while page := await self._client.run(pages.next, _OPEN_SECONDS):
                for row in page:
                    rows.put(to_entry(row), row["vector"])
        finally:
            pages.close()

    async def close(self) -> None:
        await super().close()
        from milvus_lite.server_manager import server_manager_instance

        # Flushes, and releases the lock on the directory, which pymilvus does only at exit.
        server_manager_instance.release_server(self._uri)

    async def search(
        self,
        space: str,
        tenant: str,
        identity: str,
        vector: Sequence[float],
        limit: int,
        now_ms: int = 0,
    ) -> list[Hit]:
        make_filter(tenant, Selection(identity=identity))  # refuses the same values as a server's
        rows = self._rows.get(space)
        if rows is None:
            return []

        def find() -> list[Hit]:
            with self._lock:
                return rows.search(tenant, identity, vector, limit, now_ms)

        return find() if len(rows) < _SMALL else await asyncio.to_thread(find)

    async def get(self, space: str, tenant: str, entry_id: str) -> Entry | None:
        make_filter(tenant, Selection(entry_id=entry_id))
        rows = self._rows.get(space)
        if rows is None:
            return None
        with self._lock:
            return rows.get(tenant, entry_id)

    async def read_vectors(
        self, space: str, tenant: str, entry_ids: Sequence[str]
    ) -> Mapping[str, tuple[Entry, NDArray[np.float32]]]:
        make_filter(tenant, entry_ids=entry_ids)
        rows = self._rows.get(space)
        if rows is None:
            return {}

        def read() -> Mapping[str, tuple[Entry, NDArray[np.float32]]]:
            with self._lock:
                return rows.get_vectors(tenant, entry_ids)

        return await asyncio.to_thread(read)

    async def upsert(self, space: Space, entry: Entry, vector: Sequence[float]) -> None:
        if not await self._client.run(self._reserve.fill):
            raise disk_full(self._client.service)
        try:
            if space.name in self._torn:
                # Starts a new log, after writing the rows of the torn one to a segment. Needs free space.
                await self._client.run(lambda: self._milvus.flush(space.name, timeout=self._seconds))
                self._torn.discard(space.name)
            await super().upsert(space, entry, vector)
        except ChorusError as error:
            self._note_torn_log(space.name, error)
            raise

    def _write(self, space: Space, entry: Entry, vector: Sequence[float]) -> None:
        super()._write(space, entry, vector)
        # In this thread, so that rows change in the order of the writes, also after a caller gave up.
        with self._lock:
            self._rows.setdefault(space.name, Rows()).put(entry, vector)

    async def add_uses(self, space: str, tenant: str, uses: Mapping[str, Uses]) -> None:
        make_filter(tenant, entry_ids=list(uses))
        rows = self._rows.get(space)
        if rows is None or not await self._client.run(self._reserve.fill):
            return  # on a full disk what is kept matters more than its uses

        def add() -> None:
            with self._lock:
                used = rows.get_used(tenant, uses)
            if used:
                self._milvus.upsert(space, [to_row(*each) for each in used], timeout=self._seconds)
            with self._lock:
                for entry, vector in used:
                    rows.put(entry, vector)

        try:
            await self._client.run(add)
        except ChorusError as error:
            self._note_torn_log(space, error)
            raise

    async def delete(self, space: str, tenant: str, entry_ids: Sequence[str]) -> None:
        make_filter(tenant, entry_ids=entry_ids)
        rows = self._rows.get(space)
        if rows is None:
            return

        def remove() -> None:
            with self._lock:
                owned = rows.owned(tenant, entry_ids)
            if owned:
                self._milvus.delete(space, ids=owned, timeout=self._seconds)
                with self._lock:
                    rows.remove(tenant, owned)

        await self._client.run(self._reserve.release_if_full)
        try:
            await self._client.run(remove)
        except ChorusError as error:
            self._note_torn_log(space, error)
            # A quota does not show in the free space.
            if error.reason != DISK_FULL or not await self._client.run(self._reserve.release):
                raise
            log.warning("index deletes on a full disk: its reserve is released")
            await self._client.run(remove)

    def _note_torn_log(self, space: str, error: ChorusError) -> None:
        if error.reason == DISK_FULL:
            self._torn.add(space)

    async def spaces(self) -> list[str]:
        return sorted(self._rows)

    async def select(self, space: str, tenant: str, selection: Selection) -> AsyncIterator[list[Entry]]:
        make_filter(tenant, selection)
        if space in self._rows:
            async for page in self._unpack(space, tenant, selection):
                yield page

    async def every_entry(self, space: str) -> AsyncIterator[list[Entry]]:
        if space not in self._rows:
            raise unavailable(self._client.service, f"it does not find the collection of {space}")
        async for page in self._unpack(space, None, Selection()):
            yield page

    async def _unpack(
        self, space: str, tenant: str | None, selection: Selection
    ) -> AsyncIterator[list[Entry]]:
        with self._lock:
            found = self._rows[space].select(tenant, selection)
        for begin in range(0, len(found), _PAGE):
            yield [unpack(row) for row in found[begin : begin + _PAGE]]
            await asyncio.sleep(0)  # lets lookups go first
