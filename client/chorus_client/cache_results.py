"""What the cache answers: statistics, entries, and the outcome of a purge, a verification or an adoption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, Self

from chorus.cache.v1 import cache_pb2
from chorus_rpc.errors import reason_name

from chorus_client.results import to_utc

# "unknown" is the answer of a server that does not report it.
StoreOwnership = Literal["owned", "foreign", "unclaimed", "unknown"]
_OWNERSHIPS: Final[Mapping[cache_pb2.StoreOwnership.ValueType, StoreOwnership]] = {
    cache_pb2.STORE_OWNERSHIP_OWNED: "owned",
    cache_pb2.STORE_OWNERSHIP_FOREIGN: "foreign",
    cache_pb2.STORE_OWNERSHIP_UNCLAIMED: "unclaimed",
}


@dataclass(frozen=True)
class GrowthPoint:
    """What was admitted before a time, in UTC, of the entries that are present now; the size is in bytes."""

    time: datetime
    entries: int
    bytes: int


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
        growth: the current entries by time of their admission, oldest first; empty unless requested.
        growth_step: time between two of these points, in seconds.
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
    growth: tuple[GrowthPoint, ...]
    growth_step: float
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
            growth=tuple(GrowthPoint(to_utc(each.time), each.entries, each.bytes) for each in message.growth),
            growth_step=message.growth_step.ToTimedelta().total_seconds(),
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


@dataclass(frozen=True)
class CacheEntry:
    """Latents of one request in the cache.

    Attributes:
        id: entry id.
        prompt: empty if the entry stores only its hash.
        seed: None if an earlier version stored the entry.
        bytes: total size of the blobs.
        steps: indices of the step boundaries whose latents are stored.
        side_data: whether attention maps are stored too.
        cost_seconds: time that computing the latents took.
        hits, seconds_saved: requests that used the entry, and an estimate of what they saved, in seconds.
        created, last_used, expires: in UTC; None for no use, and for no end.
        pinned: whether the entry is kept when room is needed.
        from_donor: whether the latents were made from another entry.
        nearest: cosine similarity to the nearest entry at the admission; 0 if there was none.
    """

    id: str
    model: str
    prompt: str
    seed: int | None
    generation_id: str
    bytes: int
    steps: tuple[int, ...]
    side_data: bool
    cost_seconds: float
    hits: int
    seconds_saved: float
    created: datetime
    last_used: datetime | None
    expires: datetime | None
    pinned: bool
    from_donor: bool
    nearest: float
    proto: cache_pb2.EntryDetails = field(repr=False, compare=False)

    @classmethod
    def from_proto(cls, message: cache_pb2.EntryDetails) -> Self:
        entry = message.entry
        steps = tuple(blob.step.index for blob in entry.blobs if blob.HasField("step"))
        return cls(
            id=entry.entry_id,
            model=message.model_id,
            prompt=entry.prompt,
            seed=entry.seed if entry.HasField("seed") else None,
            generation_id=entry.generation_id,
            bytes=message.size_bytes,
            steps=steps,
            side_data=len(steps) < len(entry.blobs),
            cost_seconds=entry.cost_seconds,
            hits=message.hits,
            seconds_saved=message.seconds_saved,
            created=to_utc(entry.create_time),
            last_used=to_utc(message.last_use_time) if message.HasField("last_use_time") else None,
            expires=to_utc(message.expire_time) if message.HasField("expire_time") else None,
            pinned=message.pinned,
            from_donor=message.from_donor,
            nearest=message.nearest_similarity,
            proto=message,
        )


@dataclass(frozen=True)
class Damage:
    """An entry with a blob that is missing, or else altered.

    Attributes:
        step: index of the step boundary of the blob; None for side data.
        deleted: whether the entry was deleted.
    """

    entry: str
    step: int | None
    missing: bool
    deleted: bool
    proto: cache_pb2.DamagedEntry = field(repr=False, compare=False)

    @classmethod
    def from_proto(cls, message: cache_pb2.DamagedEntry) -> Self:
        step = message.blob.step.index if message.blob.HasField("step") else None
        return cls(message.entry_id, step, message.missing, message.deleted, message)


@dataclass(frozen=True)
class Verification:
    """Numbers of entries and bytes that were verified, and the damaged entries among them."""

    entries: int
    bytes: int
    damaged: tuple[Damage, ...]


@dataclass(frozen=True)
class MappedEntry:
    """An entry, and its place in a plane where similar prompts are near each other.

    Attributes:
        prompt: its first 200 characters; empty if the entry stores only the hash.
        hits, seconds_saved: requests that used the entry, and an estimate of what they saved, in seconds.
        x, y: coordinates, −1 to 1.
    """

    id: str
    prompt: str
    generation_id: str
    hits: int
    seconds_saved: float
    x: float
    y: float

    @classmethod
    def from_proto(cls, message: cache_pb2.MappedEntry) -> Self:
        return cls(
            message.entry_id,
            message.prompt,
            message.generation_id,
            message.hits,
            message.seconds_saved,
            message.x,
            message.y,
        )


@dataclass(frozen=True)
class CacheMap:
    """Entries in a plane.

    Attributes:
        left_out: number of the tenant's entries that are not in it.
        explained_share: share of the variance of the vectors that the plane has, 0 to 1.
    """

    entries: tuple[MappedEntry, ...]
    left_out: int
    explained_share: float
    proto: cache_pb2.MapEntriesResponse = field(repr=False, compare=False)

    @classmethod
    def from_proto(cls, message: cache_pb2.MapEntriesResponse) -> Self:
        entries = tuple(map(MappedEntry.from_proto, message.entries))
        return cls(entries, message.left_out, message.explained_share, message)
