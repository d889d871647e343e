"""Vector index in Milvus: a server by its URI, or Milvus Lite inside this process.

A space is a collection `<space>_v1` behind the alias `<space>`, so that a later layout can be filled in
parallel and the alias moved. The primary key is the entry id, a digest that includes the tenant.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import grpc
from chorus_rpc.errors import DISK_FULL, ChorusError, unavailable
from chorus_rpc.limits import MAX_ID_CHARACTERS, MAX_PROMPT_BYTES
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import ErrorCode, MilvusException

from services.cache.blocking_client import BlockingClient, retry_until_up
from services.cache.certificates import TlsFault, find_tls_fault
from services.cache.disk_space import DiskReserve, disk_full
from services.cache.entries import Blob, Entry, Space
from services.cache.filters import make_filter
from services.cache.index import Hit, Index, Selection
from services.cache.index_id import read_or_create_id
from services.cache.lite_faults import describe_lite_fault
from services.cache.store_faults import describe_milvus_fault
from services.runtime.breaker import PROBE_SECONDS
from services.runtime.logs import get_logger
from services.runtime.startup import StartupError

log = get_logger("cache.milvus")

_PREFIX = "chorus_"
_LAYOUT = "_v1"
_PAGE = 500
# Writes are visible to the next call of this process, at a hundredth of the cost of "Strong" on a server.
_READ_YOUR_WRITES = "Session"

# A proxy of the environment is for destinations outside the deployment.
_CHANNEL_OPTIONS = {"grpc.enable_http_proxy": 0}

T = TypeVar("T")

# Column and type; lengths are bytes on a server.
_COLUMNS: tuple[tuple[str, Any, dict[str, int]], ...] = (
    ("tenant", DataType.VARCHAR, {"max_length": 63}),
    ("identity", DataType.VARCHAR, {"max_length": 64}),
    ("model_id", DataType.VARCHAR, {"max_length": MAX_ID_CHARACTERS}),
    ("prompt", DataType.VARCHAR, {"max_length": MAX_PROMPT_BYTES}),
    ("prompt_hash", DataType.VARCHAR, {"max_length": 64}),
    ("blobs", DataType.JSON, {}),
    ("cost_seconds", DataType.DOUBLE, {}),
    ("created_ms", DataType.INT64, {}),
    ("traceparent", DataType.VARCHAR, {"max_length": 64}),
    ("generation_id", DataType.VARCHAR, {"max_length": MAX_ID_CHARACTERS}),
)
_FIELDS = ["entry_id", *(name for name, _, _ in _COLUMNS)]


class MilvusIndex(Index):
    """Index in Milvus. Create it with `open`, which waits for the server."""

    def __init__(
        self, milvus: MilvusClient, client: BlockingClient, uri: str, index_id: str, seconds: float
    ) -> None:
        self.kind = "milvus-lite" if uri.endswith(".db") else "milvus"
        self.index_id = index_id
        self._milvus = milvus
        self._client = client
        self._uri = uri
        self._seconds = seconds
        self._ready: set[str] = set()
        # A deletion needs room for its log. A server has its own disk.
        self._reserve = DiskReserve(Path(f"{uri}.reserve")) if self.kind == "milvus-lite" else None
        # Spaces whose log may end in part of a row. Milvus Lite would append to it, and lose at the next
        # start what it acknowledged since.
        self._torn: set[str] = set()

    @classmethod
    async def open(cls, uri: str, token: str, *, seconds: float, threads: int, ca: str = "") -> MilvusIndex:
        """Connects, retrying until it succeeds or its caller is cancelled.

        Raises StartupError for a fault that no retry can cure: every fault of Milvus Lite, which runs in this
        process.

        Args:
            uri: a path that ends in ".db" for Milvus Lite, whose single thread serialises all operations.
            seconds: upper bound on one operation, in seconds.
            threads: number of concurrent operations on a server.
            ca: PEM file with the authorities that may have signed the server's certificate;
                "": those of gRPC.
        """
        # pymilvus logs every failed call with a traceback, even expected ones; our errors carry the cause.
        for name in ("pymilvus", "milvus_lite"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        lite = uri.endswith(".db")
        faults = (MilvusException, grpc.RpcError, grpc.FutureTimeoutError, OSError)
        client = BlockingClient(
            "milvus", 1 if lite else threads, seconds, faults, "CHORUS_CACHE_MILVUS_SECONDS"
        )

        def connect() -> tuple[MilvusClient, str]:
            # If scipy is installed, pymilvus imports it during its first search, which then exceeds the time
            # limit of a lookup.
            with contextlib.suppress(ImportError):
                importlib.import_module("scipy.sparse")
            if lite:
                Path(uri).parent.mkdir(parents=True, exist_ok=True)
            try:
                milvus = MilvusClient(
                    uri=uri,
                    token=token,
                    timeout=seconds,
                    dedicated=True,
                    server_pem_path=ca,
                    grpc_options=_CHANNEL_OPTIONS,
                )
            except MilvusException:
                # pymilvus reports every failed connection as a timeout.
                fault = find_tls_fault(uri, ca, seconds) if uri.startswith("https://") else None
                if fault is None:
                    raise
                raise TlsFault(f"CHORUS_CACHE_MILVUS_URI, CHORUS_CACHE_MILVUS_CA: {fault}") from None
            milvus.list_collections(timeout=seconds)
            return milvus, read_or_create_id(milvus, seconds)

        try:
            # Importing and recovering Milvus Lite takes longer than any operation.
            milvus, index_id = await retry_until_up(
                client,
                connect,
                max(seconds, 60.0) if lite else seconds,
                lambda error: (describe_lite_fault if lite else describe_milvus_fault)(error, uri),
            )
        except BaseException:
            await client.close()
            raise
        index = cls(milvus, client, uri, index_id, seconds)
        if lite:
            await index._read_every_space()
            await index._fill_reserve()
        client.suspend_when_silent(lambda: milvus.list_collections(timeout=PROBE_SECONDS))
        return index

    async def _read_every_space(self) -> None:
        """Opens the files of Milvus Lite, which otherwise happens at the first request.

        Raises StartupError for a damaged one.
        """
        try:
            for space in await self.spaces():
                async for _ in self._pages(space, ""):
                    break
        except ChorusError as error:
            if (fault := describe_lite_fault(error, self._uri)) is not None:
                await self.close()
                raise StartupError(fault) from error

    async def _fill_reserve(self) -> bool:
        """Allocates the reserve of Milvus Lite, which new rows have to leave; returns whether they have
        room."""
        return self._reserve is None or await self._client.run(self._reserve.fill)

    def _note_torn_log(self, space: str, error: Exception) -> None:
        if self._reserve is not None and isinstance(error, ChorusError) and error.reason == DISK_FULL:
            self._torn.add(space)

    async def _mend_log(self, space: str) -> None:
        """Starts a new log, after writing the rows of a torn one to a segment. Needs free space."""
        if space in self._torn:
            await self._client.run(lambda: self._milvus.flush(space, timeout=self._seconds))
            self._torn.discard(space)

    async def close(self) -> None:
        await self._client.close()
        self._milvus.close()
        if self.kind == "milvus-lite":
            from milvus_lite.server_manager import server_manager_instance

            # Flushes, and releases the lock on the directory, which pymilvus does only at exit.
            server_manager_instance.release_server(self._uri)

    async def search(
        self, space: str, tenant: str, identity: str, vector: Sequence[float], limit: int
    ) -> list[Hit]:
        where = make_filter(tenant, Selection(identity=identity))
        found: Any = await self._read(
            space,
            lambda: self._milvus.search(
                space,
                data=[list(vector)],
                filter=where,
                limit=limit,
                output_fields=_FIELDS,
                search_params={"metric_type": "COSINE"},
                consistency_level=_READ_YOUR_WRITES,
                timeout=self._seconds,
            ),
        )
        # Rounding may put the cosine of equal vectors a little above 1.
        return [
            Hit(_to_entry(hit["entity"]), min(1.0, max(-1.0, float(hit["distance"]))))
            for hit in (found[0] if found else [])
        ]

    async def get(self, space: str, tenant: str, entry_id: str) -> Entry | None:
        where = make_filter(tenant, Selection(entry_id=entry_id))
        rows: Any = await self._read(
            space,
            lambda: self._milvus.query(
                space,
                filter=where,
                output_fields=_FIELDS,
                consistency_level=_READ_YOUR_WRITES,
                timeout=self._seconds,
            ),
        )
        return _to_entry(rows[0]) if rows else None

    async def upsert(self, space: Space, entry: Entry, vector: Sequence[float]) -> None:
        row = _to_row(entry, vector)
        if not await self._fill_reserve():
            raise disk_full(self._client.service)
        if space.name not in self._ready:
            await self._client.run(lambda: self._create(space))
        try:
            await self._mend_log(space.name)
            await self._client.run(lambda: self._milvus.upsert(space.name, [row], timeout=self._seconds))
        except Exception as error:
            self._note_torn_log(space.name, error)
            # The collection may have been dropped: the next call checks again.
            self._ready.discard(space.name)
            raise

    async def delete(self, space: str, tenant: str, entry_ids: Sequence[str]) -> None:
        if not entry_ids:
            return
        where = make_filter(tenant, entry_ids=entry_ids)

        def remove() -> None:
            self._milvus.delete(space, filter=where, timeout=self._seconds)
            self._settle(space, where)

        reserve = self._reserve
        if reserve is not None:
            await self._client.run(reserve.release_if_full)
        try:
            await self._read(space, remove)
        except ChorusError as error:
            self._note_torn_log(space, error)
            # A quota does not show in the free space.
            if error.reason != DISK_FULL or reserve is None or not await self._client.run(reserve.release):
                raise
            log.warning("index deletes on a full disk: its reserve is released")
            await self._read(space, remove)

    async def spaces(self) -> list[str]:
        names = await self._client.run(lambda: self._milvus.list_collections(timeout=self._seconds))
        return sorted(
            name.removesuffix(_LAYOUT)
            for name in names
            if name.startswith(_PREFIX) and name.endswith(_LAYOUT)
        )

    def select(self, space: str, tenant: str, selection: Selection) -> AsyncIterator[list[Entry]]:
        return self._pages(space, make_filter(tenant, selection))

    def every_entry(self, space: str) -> AsyncIterator[list[Entry]]:
        return self._pages(space, "", must_exist=True)

    async def _pages(self, space: str, where: str, *, must_exist: bool = False) -> AsyncIterator[list[Entry]]:
        """Yields page by page through the queue, so that a long walk does not delay a lookup.

        Raises DEPENDENCY_UNAVAILABLE for a missing space that must exist.
        """

        def walk() -> Any:
            self._settle(space, where)
            return self._milvus.query_iterator(
                space,
                batch_size=_PAGE,
                filter=where,
                output_fields=_FIELDS,
                consistency_level="Strong",
                timeout=self._seconds,
            )

        pages: Any = await self._read(space, walk)
        if pages is None:
            if must_exist:
                raise unavailable(self._client.service, f"it does not find the collection of {space}")
            return
        try:
            while rows := await self._client.run(pages.next):
                yield [_to_entry(row) for row in rows]
        finally:
            pages.close()

    async def _read(self, space: str, call: Callable[[], T]) -> T | None:
        """Returns the result of `call`, or None if the space does not exist."""

        def read() -> T | None:
            try:
                if space not in self._ready and not self._load(space):
                    return None
                return call()
            except MilvusException as error:
                self._ready.discard(space)
                if error.code == ErrorCode.COLLECTION_NOT_FOUND:
                    return None
                raise

        return await self._client.run(read)

    def _settle(self, space: str, where: str) -> None:
        """Waits until reads see every write acknowledged before.

        Session consistency of a 2.3 server excludes deletes, and its iterators have no timestamp to wait for.
        """
        self._milvus.query(
            space,
            filter=where,
            output_fields=["entry_id"],
            limit=1,
            consistency_level="Strong",
            timeout=self._seconds,
        )

    def _create(self, space: Space) -> None:
        """Creates the collection, or its missing parts: another process may have created some of them."""
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("entry_id", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=space.dimension)
        for name, kind, bounds in _COLUMNS:
            schema.add_field(name, kind, **bounds)
        collection = space.name + _LAYOUT
        if not self._milvus.has_collection(collection, timeout=self._seconds):
            try:
                self._milvus.create_collection(collection, schema=schema, timeout=self._seconds)
            except MilvusException:
                if not self._milvus.has_collection(collection, timeout=self._seconds):
                    raise
        self._load(space.name)

    def _load(self, space: str) -> bool:
        """Makes an existing collection searchable, completing a partial one; returns False if none exists."""
        collection = space + _LAYOUT
        if not self._milvus.has_collection(collection, timeout=self._seconds):
            return False
        if not self._milvus.list_indexes(collection, timeout=self._seconds):
            params = self._milvus.prepare_index_params()
            # Exact search: at the size of a cache, the search is not the bottleneck.
            params.add_index("vector", index_type="FLAT", metric_type="COSINE")
            self._milvus.create_index(collection, params, timeout=self._seconds)
        if not self._milvus.has_collection(space, timeout=self._seconds):
            try:
                self._milvus.create_alias(collection, space, timeout=self._seconds)
            except MilvusException:
                if not self._milvus.has_collection(space, timeout=self._seconds):
                    raise
        self._milvus.load_collection(collection, timeout=self._seconds)
        self._ready.add(space)
        return True


def _to_row(entry: Entry, vector: Sequence[float]) -> dict[str, Any]:
    # The seed is part of the JSON column, so that collections of earlier versions have a place for it. It is
    # text, because a JSON number has 53 bits.
    row = asdict(entry)
    details = {
        "blobs": row.pop("blobs"),
        "seed": str(seed) if (seed := row.pop("seed")) is not None else None,
    }
    return {**row, "vector": list(vector), "blobs": details}


def _to_entry(row: dict[str, Any]) -> Entry:
    details = row["blobs"]
    seed = details.get("seed")
    return Entry(
        **{name: row[name] for name in _FIELDS if name != "blobs"},
        blobs=tuple(Blob(**blob) for blob in details["blobs"]),
        seed=None if seed is None else int(seed),
    )
