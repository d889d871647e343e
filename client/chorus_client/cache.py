"""Client of the cache, for operators: its entries and statistics. Generations do not need it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Final, Self

import grpc
import grpc.aio
from chorus.cache.v1 import cache_pb2
from chorus.cache.v1.cache_pb2_grpc import CacheServiceStub
from chorus_rpc.errors import invalid
from chorus_rpc.limits import MAX_AGE_SECONDS, MAX_ENTRIES_PAGE, MAX_GROWTH_POINTS, MAX_MAPPED_ENTRIES
from chorus_rpc.semconv import TENANT_KEY
from chorus_rpc.tenancy import DEFAULT_TENANT, check_tenant, tenant_metadata

from chorus_client.cache_results import (
    Adoption,
    CacheEntry,
    CacheMap,
    CacheStats,
    Damage,
    Purged,
    Verification,
)
from chorus_client.connection import CALL_SECONDS, Connection, Metadata
from chorus_client.endpoints import VARIABLES, resolve

PURGE_SECONDS: Final = 300.0
ADOPT_SECONDS: Final = 300.0
VERIFY_SECONDS: Final = 3_600.0

_ORDERS: Final[Mapping[str, cache_pb2.EntryOrder.ValueType]] = {
    "newest": cache_pb2.ENTRY_ORDER_UNSPECIFIED,
    "used": cache_pb2.ENTRY_ORDER_LAST_USE,
    "saved": cache_pb2.ENTRY_ORDER_SECONDS_SAVED,
    "size": cache_pb2.ENTRY_ORDER_SIZE,
    "hits": cache_pb2.ENTRY_ORDER_HITS,
}


class AsyncCacheClient:
    """Reads and empties one tenant's cache. Methods raise ChorusError, as those of AsyncChorusClient do.

    Args:
        target: "host:port" of the cache, or any gRPC name. Default: CHORUS_CACHE_TARGET, else the `chorus up`
            that runs in this directory, else localhost:7402.
        tenant: tenant that owns the entries.
        credentials, metadata, interceptors, timeout, use_proxy: the same as for AsyncChorusClient.
    """

    def __init__(
        self,
        target: str | None = None,
        tenant: str = DEFAULT_TENANT,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        timeout: float = CALL_SECONDS,
        use_proxy: bool = True,
    ) -> None:
        self.target = resolve("cache", target)
        self._connection = Connection(
            CacheServiceStub,
            "cache",
            self.target,
            VARIABLES["cache"],
            credentials=credentials,
            metadata=(*tenant_metadata(check_tenant(tenant)), *metadata),
            interceptors=interceptors,
            timeout=timeout,
            use_proxy=use_proxy,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel; calls still running end."""
        await self._connection.close()

    def with_tenant(self, tenant: str) -> Self:
        """Returns a client of another tenant's entries that shares this one's connection, and ends with it.

        Raises ChorusError (INVALID_FIELD) for an invalid tenant.
        """
        other = copy.copy(self)
        kept = [(name, value) for name, value in self._connection.metadata if name != TENANT_KEY]
        other._connection = self._connection.with_metadata((*tenant_metadata(check_tenant(tenant)), *kept))
        return other

    async def stats(
        self, *, from_memory: bool = False, growth_points: int = 0, timeout: float | None = None
    ) -> CacheStats:
        """Returns the contents and the use of the cache.

        Args:
            from_memory: whether the cache counts what it has in memory, which is faster with many entries,
                and counts blobs that entries share for each of them.
            growth_points: upper bound on the points of `CacheStats.growth`, 2 to 500; 0 for none.
            timeout: deadline of the call, in seconds.
        """
        known = isinstance(growth_points, int) and 0 <= growth_points <= MAX_GROWTH_POINTS
        if not known or growth_points == 1:
            raise invalid("growth_points", f"must be 0, or 2 to {MAX_GROWTH_POINTS}, not {growth_points!r}")
        request = cache_pb2.StatsRequest(from_memory=from_memory, growth_points=growth_points)
        return CacheStats.from_proto(
            await self._connection.call(self._connection.stub.Stats, request, timeout)
        )

    async def list(
        self, order: str = "newest", limit: int = 50, *, timeout: float | None = None
    ) -> tuple[CacheEntry, ...]:
        """Returns up to `limit` entries, in descending order.

        Args:
            order: "newest", "used" (latest use first), "saved" (most computation saved first), "size" or
                "hits" (most uses first).
            limit: upper bound on the number of entries, at least 1.
            timeout: deadline of each page, in seconds.
        """
        _check_order(order)
        if not isinstance(limit, int) or limit < 1:
            raise invalid("limit", f"must be at least 1, not {limit!r}")
        request = cache_pb2.ListEntriesRequest(order=_ORDERS[order])
        entries: tuple[CacheEntry, ...] = ()
        while len(entries) < limit:
            request.page_size = min(MAX_ENTRIES_PAGE, limit - len(entries))
            page = await self._connection.call(self._connection.stub.ListEntries, request, timeout)
            entries += tuple(map(CacheEntry.from_proto, page.entries))
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        return entries

    async def map(self, order: str = "newest", limit: int = 200, *, timeout: float | None = None) -> CacheMap:
        """Returns places of entries in a plane, so that similar prompts are near each other.

        Args:
            order: as of `list`.
            limit: upper bound on the number of entries, 1 to 500.
            timeout: deadline of the call, in seconds.
        """
        _check_order(order)
        if not isinstance(limit, int) or not 1 <= limit <= MAX_MAPPED_ENTRIES:
            raise invalid("limit", f"must be 1 to {MAX_MAPPED_ENTRIES}, not {limit!r}")
        request = cache_pb2.MapEntriesRequest(order=_ORDERS[order], limit=limit)
        return CacheMap.from_proto(
            await self._connection.call(self._connection.stub.MapEntries, request, timeout)
        )

    async def entry(self, entry: str, *, timeout: float | None = None) -> CacheEntry:
        """Returns the entry with an id. Raises ChorusError (NOT_FOUND)."""
        request = cache_pb2.GetEntryRequest(entry_id=entry)
        found = await self._connection.call(self._connection.stub.GetEntry, request, timeout)
        return CacheEntry.from_proto(found.entry)

    async def verify(
        self,
        entry: str | None = None,
        *,
        repair: bool = False,
        on_progress: Callable[[Verification], None] | None = None,
        timeout: float = VERIFY_SECONDS,
    ) -> Verification:
        """Compares the blobs of entries in the object store with their digests.

        Args:
            entry: id of the one entry to verify; None for all.
            repair: whether to delete damaged entries.
            on_progress: receives what was verified so far, about once a second.
        """
        request = cache_pb2.VerifyEntriesRequest(entry_id=entry or "", repair=repair)
        done = Verification(0, 0, ())
        async with aclosing(
            self._connection.stream(self._connection.stub.VerifyEntries, request, timeout)
        ) as reports:
            async for report in reports:
                damaged = (*done.damaged, *map(Damage.from_proto, report.damaged))
                done = Verification(report.entries, report.bytes, damaged)
                if on_progress is not None:
                    on_progress(done)
        return done

    async def purge(
        self,
        *,
        entry: str | None = None,
        model: str | None = None,
        older_than: float | None = None,
        everything: bool = False,
        validate_only: bool = False,
        timeout: float = PURGE_SECONDS,
    ) -> Purged:
        """Drops the entries that match every argument given.

        Raises ChorusError (INVALID_FIELD) without arguments: a purge of all entries needs `everything`.

        Args:
            entry: entry id.
            model: model id.
            older_than: lower bound on the age of an entry, in seconds.
            everything: whether to drop every entry of the tenant.
            validate_only: whether to count only, and to drop nothing.
        """
        if not (entry or model or older_than is not None or everything):
            raise invalid("purge", "must name an entry, a model, an age, or all entries")
        request = cache_pb2.PurgeRequest(
            entry_id=entry or "", model_id=model or "", all=everything, validate_only=validate_only
        )
        if older_than is not None:
            if not 0 <= older_than <= MAX_AGE_SECONDS:
                raise invalid("older_than", f"must be 0 to {MAX_AGE_SECONDS:g} seconds, not {older_than:g}")
            request.older_than.FromMilliseconds(int(older_than * 1000))
        return Purged.from_proto(await self._connection.call(self._connection.stub.Purge, request, timeout))

    async def adopt(self, *, validate_only: bool = False, timeout: float = ADOPT_SECONDS) -> Adoption:
        """Claims the object store for the index of this cache, for all tenants.

        Later sweeps delete every blob that this index does not name, for instance those of a former index.

        Args:
            validate_only: whether to report only, and to leave the store as it is.
        """
        request = cache_pb2.AdoptRequest(validate_only=validate_only)
        return Adoption.from_proto(await self._connection.call(self._connection.stub.Adopt, request, timeout))


def _check_order(order: str) -> None:
    if order not in _ORDERS:
        raise invalid("order", f"must be one of {', '.join(_ORDERS)}, not {order!r}")
