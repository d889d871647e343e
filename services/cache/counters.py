"""Counters of the cache's process, and the storage of a tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from chorus_rpc.errors import Reason

from services.cache.entries import Entry


@dataclass
class Counters:
    """Counters since the start of the process."""

    lookups: int = 0
    lookups_with_donor: int = 0
    fetches: int = 0
    admissions: int = 0
    corrupt_blobs: int = 0
    failed_sweeps: int = 0
    rejected_admissions: Counter[Reason] = field(default_factory=Counter)


@dataclass(frozen=True)
class StorageUsage:
    """Number of entries and bytes of their blobs; a shared blob counts once."""

    entries: int
    size_bytes: int


def map_sizes(entries: Iterable[Entry]) -> dict[str, int]:
    return {
        key: blob.size_bytes for entry in entries for key, blob in zip(entry.keys, entry.blobs, strict=True)
    }
