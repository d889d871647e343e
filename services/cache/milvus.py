"""Vector index on a Milvus server. `embedded` extends it to Milvus Lite inside this process.

`layout` has the columns. The primary key is the entry id, a digest that includes the tenant.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np
from chorus_rpc.errors import unavailable
from numpy.typing import NDArray
from pymilvus import MilvusClient
from pymilvus.exceptions import ErrorCode, MilvusException

from services.cache.blocking_client import BlockingClient
from services.cache.certificates import TlsFault, find_tls_fault
from services.cache.entries import Entry, Space, Uses
from services.cache.filters import make_filter
from services.cache.index import Hit, Index, Selection
from services.cache.index_id import read_or_create_id
from services.cache.layout import (
    FIELDS,
    create_collection,
    find_spaces,
    load_collection,
    to_entry,
    to_row,
)
from services.cache.store_faults import describe_milvus_fault
from services.runtime.blocking_client import retry_until_up
from services.runtime.breaker import PROBE_SECONDS

_PAGE = 500
_VECTORS_PAGE = 100
# Writes are visible to the next call of this process, at a hundredth of the cost of "Strong" on a server.
_READ_YOUR_WRITES = "Session"

# A proxy of the environment is for destinations outside the deployment.
_CHANNEL_OPTIONS = {"grpc.enable_http_proxy": 0}

T = TypeVar("T")


def make_client(threads: int, seconds: float) -> BlockingClient:
    """Returns the threads in which pymilvus runs."""
    # pymilvus logs every failed call with a traceback, even expected ones; our errors carry the cause.
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    faults = (MilvusException, grpc.RpcError, grpc.FutureTimeoutError, OSError)
    return BlockingClient("milvus", threads, seconds, faults, "CHORUS_CACHE_MILVUS_SECONDS")


async def connect(
    client: BlockingClient,
    seconds: float,
    limit: float,
    describe_fault: Callable[[BaseException, str], str | None],
    **options: str,
) -> tuple[MilvusClient, str]:
    """Connects until it succeeds, and returns the connection with the id of the index.

    Closes the client if it fails.

    Args:
        seconds: upper bound on one operation, in seconds.
        limit: upper bound on one attempt to connect, in seconds.
        describe_fault: returns the message about a fault at the URI that no retry can cure.
        options: further options of pymilvus, such as `uri`.
    """
    uri, ca = options["uri"], options.get("server_pem_path", "")
    # The server of Milvus Lite, in this process, closes a connection that sends pings while it is idle.
    idle_pings = {} if "://" in uri else {"grpc.keepalive_permit_without_calls": 0}

    def attempt() -> tuple[MilvusClient, str]:
        # If scipy is installed, pymilvus imports it during its first search, which then exceeds the time
        # limit of a lookup.
        with contextlib.suppress(ImportError):
            importlib.import_module("scipy.sparse")
        try:
            milvus = MilvusClient(
                timeout=seconds, dedicated=True, grpc_options=_CHANNEL_OPTIONS | idle_pings, **options
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
        return await retry_until_up(client, attempt, limit, lambda error: describe_fault(error, uri))
    except BaseException:
        await client.close()
        raise


class MilvusIndex(Index):
    """Index in Milvus. Create it with `open`, which waits for the server."""

    kind = "milvus"

    def __init__(
        self, milvus: MilvusClient, client: BlockingClient, uri: str, index_id: str, seconds: float
    ) -> None:
        self.index_id = index_id
        self._milvus = milvus
        self._client = client
        self._uri = uri
        self._seconds = seconds
        self._ready: set[str] = set()

    @classmethod
    async def open(cls, uri: str, token: str, *, seconds: float, threads: int, ca: str = "") -> MilvusIndex:
        """Connects, retrying until it succeeds or its caller is cancelled.

        Raises StartupError for a fault that no retry can cure.

        Args:
            uri: URI of the server.
            seconds: upper bound on one operation, in seconds.
            threads: number of concurrent operations.
            ca: PEM file with the authorities that may have signed the server's certificate;
                "": those of gRPC.
        """
        client = make_client(threads, seconds)
        milvus, index_id = await connect(
            client, seconds, seconds, describe_milvus_fault, uri=uri, token=token, server_pem_path=ca
        )
        client.suspend_when_silent(lambda: milvus.list_collections(timeout=PROBE_SECONDS))
        return cls(milvus, client, uri, index_id, seconds)

    async def close(self) -> None:
        await self._client.close()
        self._milvus.close()

    async def search(
        self,
        space: str,
        tenant: str,
        identity: str,
        vector: Sequence[float],
        limit: int,
        now_ms: int = 0,
    ) -> list[Hit]:
        where = make_filter(tenant, Selection(identity=identity, alive_at_ms=now_ms or None))
        found: Any = await self._read(
            space,
            lambda: self._milvus.search(
                space,
                data=[list(vector)],
                filter=where,
                limit=limit,
                output_fields=FIELDS,
                search_params={"metric_type": "COSINE"},
                consistency_level=_READ_YOUR_WRITES,
                timeout=self._seconds,
            ),
        )
        # Rounding may put the cosine of equal vectors a little above 1.
        return [
            Hit(to_entry(hit["entity"]), min(1.0, max(-1.0, float(hit["distance"]))))
            for hit in (found[0] if found else [])
        ]

    async def get(self, space: str, tenant: str, entry_id: str) -> Entry | None:
        where = make_filter(tenant, Selection(entry_id=entry_id))
        rows: Any = await self._read(
            space,
            lambda: self._milvus.query(
                space,
                filter=where,
                output_fields=FIELDS,
                consistency_level=_READ_YOUR_WRITES,
                timeout=self._seconds,
            ),
        )
        return to_entry(rows[0]) if rows else None

    async def read_vectors(
        self, space: str, tenant: str, entry_ids: Sequence[str]
    ) -> Mapping[str, tuple[Entry, NDArray[np.float32]]]:
        found: dict[str, tuple[Entry, NDArray[np.float32]]] = {}
        # A page of vectors of 4,096 values has 1.6 MB.
        for begin in range(0, len(entry_ids), _VECTORS_PAGE):
            where = make_filter(tenant, entry_ids=entry_ids[begin : begin + _VECTORS_PAGE])
            rows: Any = await self._read(space, functools.partial(self._query_vectors, space, where))
            for row in rows or ():
                found[row["entry_id"]] = to_entry(row), np.asarray(row["vector"], np.float32)
        return found

    def _query_vectors(self, space: str, where: str) -> Any:
        return self._milvus.query(
            space,
            filter=where,
            output_fields=[*FIELDS, "vector"],
            consistency_level=_READ_YOUR_WRITES,
            timeout=self._seconds,
        )

    async def upsert(self, space: Space, entry: Entry, vector: Sequence[float]) -> None:
        if space.name not in self._ready:
            await self._client.run(lambda: self._create(space))
        try:
            await self._client.run(lambda: self._write(space, entry, vector))
        except Exception:
            # The collection may have been dropped: the next call checks again.
            self._ready.discard(space.name)
            raise

    def _write(self, space: Space, entry: Entry, vector: Sequence[float]) -> None:
        self._milvus.upsert(space.name, [to_row(entry, vector)], timeout=self._seconds)

    async def add_uses(self, space: str, tenant: str, uses: Mapping[str, Uses]) -> None:
        if not uses:
            return
        where = make_filter(tenant, entry_ids=list(uses))

        def add() -> None:
            rows = self._milvus.query(
                space,
                filter=where,
                output_fields=[*FIELDS, "vector"],
                consistency_level="Strong",
                timeout=self._seconds,
            )
            changed = [to_row(to_entry(row).with_uses(uses[row["entry_id"]]), row["vector"]) for row in rows]
            if changed:
                self._milvus.upsert(space, changed, timeout=self._seconds)

        await self._read(space, add)

    async def delete(self, space: str, tenant: str, entry_ids: Sequence[str]) -> None:
        if not entry_ids:
            return
        where = make_filter(tenant, entry_ids=entry_ids)

        def remove() -> None:
            self._milvus.delete(space, filter=where, timeout=self._seconds)
            self._settle(space, where)

        await self._read(space, remove)

    async def spaces(self) -> list[str]:
        names = await self._client.run(lambda: self._milvus.list_collections(timeout=self._seconds))
        return find_spaces(names)

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
                output_fields=FIELDS,
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
                yield [to_entry(row) for row in rows]
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

    def _load(self, space: str) -> bool:
        """Makes an existing collection searchable; returns False if none exists."""
        if not load_collection(self._milvus, space, self._seconds):
            return False
        self._ready.add(space)
        return True

    def _create(self, space: Space) -> None:
        create_collection(self._milvus, space.name, space.dimension, self._seconds)
        self._load(space.name)
