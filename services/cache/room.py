"""Keeps the cache within its capacity: makes room before an admission, and removes what has expired.

Room is reserved before the first byte is written, so that the blobs that rows name never exceed the capacity.
A tenant that exceeds its own share loses its own entries; if all tenants together exceed the capacity, the
largest loses its entries: nobody gains room by filling the cache. Other processes on the same index change
what it holds; each sweep reads it anew (`LatentStore.load`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from chorus_rpc.errors import WRONG_STATE, ChorusError, invalid, unavailable

from services.cache.counters import TenantCounters
from services.cache.entries import Entry
from services.cache.eviction.ledger import EntryKey, Ledger
from services.cache.eviction.priorities import Held

_SLICE = 1_000  # entries between which other calls get their turn
_WAIT_SECONDS = 30.0
_PINNED_SHARE = 0.5  # of a tenant's capacity: the rest serves its other requests
CAPACITY, TENANT_CAPACITY, EXPIRED = "capacity", "tenant_capacity", "expired"


@dataclass(frozen=True)
class Capacity:
    """Upper bounds on the blobs of all entries, in bytes.

    Attributes:
        total: bound for all tenants together.
        tenant: bound for each tenant.
        low_water: share of a bound down to which entries are evicted once it is exceeded.
    """

    total: int
    tenant: int
    low_water: float = 0.97

    @property
    def smaller(self) -> int:
        """Bound on one tenant's entries that follows from both bounds."""
        return min(self.total, self.tenant)

    @property
    def pinned(self) -> int:
        """Bound on the blobs of one tenant's pinned entries."""
        return int(self.smaller * _PINNED_SHARE)


UNBOUNDED = Capacity(1 << 62, 1 << 62)


class Room:
    """Reserves room in the cache.

    Args:
        evict: deletes an entry that the ledger no longer holds, from the index and the object store.
        counters: receives the number of evictions.
    """

    def __init__(
        self,
        ledger: Ledger,
        capacity: Capacity,
        evict: Callable[[EntryKey], Awaitable[None]],
        counters: TenantCounters,
    ) -> None:
        self.capacity = capacity
        self._counters = counters
        self._ledger = ledger
        self._evict = evict
        self._reserved: Counter[str] = Counter()  # by tenant: room of running admissions, in bytes
        self._pinning: Counter[str] = Counter()  # by tenant: the part of it that pinned entries take
        self._reading: Counter[EntryKey] = Counter()
        self._deciding = asyncio.Lock()  # held by the admission that makes room; the others wait for it
        self._changed = asyncio.Event()  # a reservation or a reading ended

    @contextmanager
    def reading(self, key: EntryKey) -> Iterator[None]:
        """Keeps an entry from being evicted while a request reads it."""
        self._reading[key] += 1
        try:
            yield
        finally:
            self._reading -= Counter((key,))
            self._changed.set()

    @asynccontextmanager
    async def reserve(self, tenant: str, size_bytes: int, *, pinned: bool = False) -> AsyncIterator[None]:
        """Makes room for an admission and keeps it until the block ends, when the ledger holds the entry.

        Waits while what could make room is being written or read. Raises INVALID_FIELD for an entry that the
        capacity could never hold, WRONG_STATE for a pinned one beyond the bound on these,
        DEPENDENCY_UNAVAILABLE if there is no room in time, and the errors of the stores.
        """
        limit = self.capacity.smaller
        if size_bytes > limit:
            raise invalid(
                "entry",
                f"its blobs have {size_bytes} bytes, more than the cache may hold for a tenant ({limit},"
                " CHORUS_CACHE_CAPACITY_BYTES, CHORUS_CACHE_TENANT_CAPACITY_BYTES)",
            )
        if not pinned:
            async with self._reserve(tenant, size_bytes):
                yield
            return
        self.check_pin(tenant, size_bytes)
        self._pinning[tenant] += size_bytes
        try:
            async with self._reserve(tenant, size_bytes):
                yield
        finally:
            self._pinning[tenant] -= size_bytes

    def check_pin(self, tenant: str, size_bytes: int) -> None:
        """Raises WRONG_STATE if a tenant may not pin a further entry of this size."""
        taken = self._ledger.pinned_bytes(tenant) + self._pinning[tenant]
        if taken + size_bytes > self.capacity.pinned:
            raise ChorusError(
                WRONG_STATE,
                f"the entry was not stored: it asks to be pinned and has {size_bytes} bytes, and the tenant's"
                f" pinned entries have {taken}; together they may have {self.capacity.pinned}, a half of its"
                " capacity (CHORUS_CACHE_CAPACITY_BYTES, CHORUS_CACHE_TENANT_CAPACITY_BYTES);"
                " `chorus cache purge --entry ID` removes a pinned entry",
            )

    @asynccontextmanager
    async def _reserve(self, tenant: str, size_bytes: int) -> AsyncIterator[None]:
        timer = asyncio.timeout(_WAIT_SECONDS)
        try:
            async with timer, self._deciding:
                self._changed.clear()
                while not await self._make_room(tenant, size_bytes):
                    await self._changed.wait()
                    self._changed.clear()
                self._reserved[tenant] += size_bytes
        except TimeoutError:
            if not timer.expired():
                raise
            raise unavailable(
                "cache", f"no room within {_WAIT_SECONDS:g} s: every entry is being read or written"
            ) from None
        try:
            yield
        finally:
            self._reserved[tenant] -= size_bytes
            self._changed.set()

    async def remove_expired(self, now_ms: int) -> int:
        """Evicts every entry that has expired; returns their number."""
        count = 0
        for number, key in enumerate(self._ledger):
            if number % _SLICE == 0:
                await asyncio.sleep(0)  # lets lookups go first
            held = self._ledger.get(key)
            if held is not None and 0 < held.expires_ms <= now_ms:
                self._ledger.remove(key)
                await self._drop(key, EXPIRED)
                count += 1
        return count

    async def _make_room(self, tenant: str, size_bytes: int) -> bool:
        """Evicts until the bounds hold with `size_bytes` more; returns whether they do."""
        bounds = self.capacity
        if self._count(tenant) + size_bytes > bounds.tenant:
            target = bounds.tenant * bounds.low_water
            while self._count(tenant) + size_bytes > target:
                if not await self._evict_one(tenant, TENANT_CAPACITY):
                    break
        if self._count_all() + size_bytes > bounds.total:
            target = bounds.total * bounds.low_water
            while self._count_all() + size_bytes > target and await self._evict_from_largest():
                pass
        return (
            self._count(tenant) + size_bytes <= bounds.tenant
            and self._count_all() + size_bytes <= bounds.total
        )

    async def _evict_from_largest(self) -> bool:
        """Evicts from the largest tenant; from the next if all entries of that one are being read."""
        for tenant in self._ledger.tenants:
            if await self._evict_one(tenant, CAPACITY):
                return True
        return False

    async def _evict_one(self, tenant: str, reason: str) -> bool:
        found = self._ledger.evict(tenant, busy=self._reading)
        if found is None:
            return False
        await self._drop(found[0], reason)
        return True

    async def _drop(self, key: EntryKey, reason: str) -> None:
        await self._evict(key)  # if it fails, the next sweep finds the row that is left, and counts it again
        self._counters[key.tenant].evictions[reason] += 1

    def _count(self, tenant: str) -> int:
        return self._ledger.bytes_of(tenant) + self._reserved[tenant]

    def _count_all(self) -> int:
        return self._ledger.total_bytes + sum(self._reserved.values())


def to_held(entry: Entry) -> Held:
    """Returns what the ledger keeps of an entry."""
    return Held(
        size_bytes=entry.size_bytes,
        cost_seconds=entry.cost_seconds,
        created_ms=entry.created_ms,
        used_ms=max(entry.created_ms, entry.uses.used_ms),
        hits=entry.uses.hits,
        saved_seconds=entry.uses.saved_seconds,
        similarity=entry.similarity,
        from_hit=entry.from_hit,
        seed_drawn=entry.seed_drawn,
        expires_ms=entry.expires_ms,
        pinned=entry.pinned,
    )
