"""What the cache holds, in memory: bytes of each tenant, and the order in which entries are evicted."""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from services.cache.eviction.priorities import Held, Priority, worth

_STALE_LIMIT: Final = 64  # stale places that an order may have in addition to twice its entries


class EntryKey(NamedTuple):
    """Key of an entry in the index."""

    space: str
    tenant: str
    entry_id: str


@dataclass
class _Place:
    held: Held
    priority: float
    serial: int
    digests: tuple[int, ...]


class _Order:
    """Entries of one tenant by priority. A place whose serial is not the entry's latest is stale."""

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, EntryKey]] = []
        self.clock = 0.0
        self.entries = 0


def _shorten(blob: str) -> int:
    return int.from_bytes(hashlib.blake2b(blob.encode(), digest_size=8).digest())


class Ledger:
    """Accounts for entries. Not safe for concurrent use: the event loop alone changes it.

    Args:
        priority: function that ranks entries; the lowest is evicted first.
    """

    def __init__(self, priority: Priority = worth) -> None:
        self._priority = priority
        self._places: dict[EntryKey, _Place] = {}
        self._orders: dict[str, _Order] = {}
        self._bytes: Counter[str] = Counter()
        self._pinned: Counter[str] = Counter()
        self._serials = itertools.count()
        # A digest of 64 bits of each blob's key. Two blobs that share it are taken for one, so that one of
        # the two is left to the sweeper.
        self._digests: set[int] = set()
        self._shared: Counter[int] = Counter()  # further entries with a blob of this digest

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: EntryKey) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[EntryKey]:
        return iter(list(self._places))

    @property
    def total_bytes(self) -> int:
        return sum(self._bytes.values())

    @property
    def tenants(self) -> list[str]:
        """Tenants that hold at least one byte, the largest first."""
        return [tenant for tenant, size in self._bytes.most_common() if size > 0]

    def measure_tenants(self) -> dict[str, tuple[int, int]]:
        """Returns the number of entries and the bytes of each tenant.

        Unlike other methods it may be called from any thread.
        """
        # Copied in one step, during which the event loop changes nothing.
        return {tenant: (order.entries, self._bytes[tenant]) for tenant, order in dict(self._orders).items()}

    def bytes_of(self, tenant: str) -> int:
        return self._bytes[tenant]

    def pinned_bytes(self, tenant: str) -> int:
        return self._pinned[tenant]

    def get(self, key: EntryKey) -> Held | None:
        place = self._places.get(key)
        return None if place is None else place.held

    def add(self, key: EntryKey, held: Held, blobs: Sequence[str] = ()) -> None:
        """Adds an entry, or replaces what is known about it.

        Args:
            blobs: keys of its blobs in the object store.
        """
        self.remove(key)
        short = tuple(map(_shorten, blobs))
        for each in short:
            if each in self._digests:
                self._shared[each] += 1
            self._digests.add(each)
        self._bytes[key.tenant] += held.size_bytes
        self._pinned[key.tenant] += held.size_bytes if held.pinned else 0
        order = self._orders.setdefault(key.tenant, _Order())
        order.entries += 1
        self._rank(key, held, order, short)

    def holds(self, blob: str) -> bool:
        """Returns whether an entry has the blob of this key."""
        return _shorten(blob) in self._digests

    def use(self, key: EntryKey, now_ms: int, saved_seconds: float) -> None:
        """Notes that a request used an entry; one that is not held is ignored.

        Args:
            saved_seconds: computation that the request saved.
        """
        if (place := self._places.get(key)) is not None:
            former = place.held
            used = replace(
                former,
                hits=former.hits + 1,
                used_ms=now_ms,
                saved_seconds=former.saved_seconds + saved_seconds,
            )
            self._rank(key, used, self._orders[key.tenant], place.digests)

    def remove(self, key: EntryKey) -> None:
        """Removes an entry; one that is not held is ignored."""
        place = self._places.pop(key, None)
        if place is None:
            return
        self._bytes[key.tenant] -= place.held.size_bytes
        self._pinned[key.tenant] -= place.held.size_bytes if place.held.pinned else 0
        for each in place.digests:
            if self._shared.get(each):
                self._shared -= Counter((each,))
            else:
                self._digests.discard(each)
        order = self._orders[key.tenant]
        order.entries -= 1
        if not order.entries:
            order.heap.clear()

    def evict(self, tenant: str, busy: Container[EntryKey] = ()) -> tuple[EntryKey, Held] | None:
        """Removes and returns a tenant's entry with the lowest priority that is not pinned; None if there is
        none.

        Args:
            busy: entries that are kept, because a request is reading them.
        """
        order = self._orders.get(tenant)
        kept: list[tuple[float, int, EntryKey]] = []
        found: tuple[EntryKey, Held] | None = None
        while order is not None and order.heap and found is None:
            priority, serial, key = item = heapq.heappop(order.heap)
            place = self._places.get(key)
            if place is None or place.serial != serial:
                continue
            if key in busy:
                kept.append(item)
                continue
            order.clock = max(order.clock, priority)
            found = key, place.held
        if order is not None:
            for item in kept:
                heapq.heappush(order.heap, item)
        if found is not None:
            self.remove(found[0])
        return found

    def _rank(self, key: EntryKey, held: Held, order: _Order, digests: tuple[int, ...]) -> None:
        place = _Place(held, self._priority(held, order.clock), next(self._serials), digests)
        self._places[key] = place
        if held.pinned:
            return
        heapq.heappush(order.heap, (place.priority, place.serial, key))
        if len(order.heap) > 2 * order.entries + _STALE_LIMIT:
            order.heap = [
                item for item in order.heap if (p := self._places.get(item[2])) and p.serial == item[1]
            ]
            heapq.heapify(order.heap)
