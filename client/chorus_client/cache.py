"""Client of the cache, for operators: statistics, purge and adoption. Generations do not need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Final, Literal, Self

import grpc
import grpc.aio
from chorus.cache.v1 import cache_pb2
from chorus.cache.v1.cache_pb2_grpc import CacheServiceStub
from chorus_rpc.errors import invalid, reason_name
from chorus_rpc.limits import MAX_AGE_SECONDS
from chorus_rpc.tenancy import DEFAULT_TENANT, check_tenant, tenant_metadata

from chorus_client.connection import CALL_SECONDS, Connection, Metadata
from chorus_client.endpoints import VARIABLES, resolve
from chorus_client.results import to_utc

PURGE_SECONDS: Final = 300.0
ADOPT_SECONDS: Final = 300.0

# "unknown" is the answer of a server that does not report it.
StoreOwnership = Literal["owned", "foreign", "unclaimed", "unknown"]
_OWNERSHIPS: Final[Mapping[cache_pb2.StoreOwnership.ValueType, StoreOwnership]] = {
    cache_pb2.STORE_OWNERSHIP_OWNED: "owned",
    cache_pb2.STORE_OWNERSHIP_FOREIGN: "foreign",
    cache_pb2.STORE_OWNERSHIP_UNCLAIMED: "unclaimed",
}


@dataclass(frozen=True)
class CacheStats:
    """Contents and use of a tenant's cache.

    Attributes:
        bytes: size of the entries, in bytes.
        lookups_with_donor: lookups that found at least one donor.
        corrupt_blobs: blobs that were found damaged and dropped.
        started: start of the counters, in UTC.
        index_kind, blobs_kind: implementations of the two stores.
        store_ownership: relation of the object store to the index; only an "owned" store is swept.
        index_id: id of the index.
        store_owners: ids of the indexes whose markers the object store carries.
        rejected_admissions: number of failed admissions by the name of their reason.
        failed_sweeps: sweeps that failed.
        capacity: upper bound on `bytes`; 0 if the cache does not report one.
        evictions: number of entries that the cache deleted itself, by reason.
        hits: uses of the current entries.
        seconds_saved: estimate of the computation that these uses saved, in seconds.
    """

    entries: int
    bytes: int
    lookups: int
    lookups_with_donor: int
    fetches: int
    admissions: int
    corrupt_blobs: int
    started: datetime
    index_kind: str
    blobs_kind: str
    store_ownership: StoreOwnership
    index_id: str
    store_owners: tuple[str, ...]
    rejected_admissions: Mapping[str, int]
    failed_sweeps: int
    capacity: int
    evictions: Mapping[str, int]
    hits: int
    seconds_saved: float
    proto: cache_pb2.StatsResponse = field(repr=False, compare=False)

    @classmethod
    def from_proto(cls, message: cache_pb2.StatsResponse) -> Self:
        return cls(
            entries=message.entries,
            bytes=message.bytes,
            lookups=message.lookups,
            lookups_with_donor=message.lookups_with_donor,
            fetches=message.fetches,
            admissions=message.admissions,
            corrupt_blobs=message.corrupt_blobs,
            started=to_utc(message.start_time),
            index_kind=message.index_kind,
            blobs_kind=message.blobs_kind,
            store_ownership=_OWNERSHIPS.get(message.store_ownership, "unknown"),
            index_id=message.index_id,
            store_owners=tuple(message.store_owners),
            rejected_admissions={
                reason_name(rejected.reason): rejected.count for rejected in message.rejected_admissions
            },
            failed_sweeps=message.failed_sweeps,
            capacity=message.capacity_bytes,
            evictions={each.reason: each.count for each in message.evictions},
            hits=message.hits,
            seconds_saved=message.seconds_saved,
            proto=message,
        )


@dataclass(frozen=True)
class Purged:
    """Result of a purge.

    Attributes:
        bytes: size of the dropped entries, in bytes.
    """

    entries: int
    bytes: int
    proto: cache_pb2.PurgeResponse = field(repr=False, compare=False)

    @classmethod
    def from_proto(cls, message: cache_pb2.PurgeResponse) -> Self:
        return cls(message.entries, message.bytes, message)


@dataclass(frozen=True)
class Adoption:
    """Result of an adoption of the object store.

    Attributes:
        index_id: id of the index that owns the store.
        previous_owners: ids of the other indexes that owned it before.
        orphaned_blobs, orphaned_bytes: number and size of the blobs that no entry of this index names, which
            sweeps delete.
        broken_entries: entries of this index whose blobs the store lacks, which sweeps delete too.
    """

    index_id: str
    previous_owners: tuple[str, ...]
    orphaned_blobs: int
    orphaned_bytes: int
    broken_entries: int
    proto: cache_pb2.AdoptResponse = field(repr=False, compare=False)

    @classmethod
    def from_proto(cls, message: cache_pb2.AdoptResponse) -> Self:
        return cls(
            index_id=message.index_id,
            previous_owners=tuple(message.previous_owners),
            orphaned_blobs=message.orphaned_blobs,
            orphaned_bytes=message.orphaned_bytes,
            broken_entries=message.broken_entries,
            proto=message,
        )


class AsyncCacheClient:
    """Reads and empties one tenant's cache. Methods raise ChorusError, as those of AsyncChorusClient do.

    Args:
        target: "host:port" of the cache, or any gRPC name. Default: CHORUS_CACHE_TARGET, else the `chorus up`
            that runs in this directory, else localhost:7402.
        tenant: tenant that owns the entries.
        credentials, metadata, interceptors, timeout: the same as for AsyncChorusClient.
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

    async def stats(self, *, timeout: float | None = None) -> CacheStats:
        """Returns the contents and the use of the cache."""
        request = cache_pb2.StatsRequest()
        return CacheStats.from_proto(
            await self._connection.call(self._connection.stub.Stats, request, timeout)
        )

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
