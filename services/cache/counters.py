"""Counters of the cache's process."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from chorus_rpc.errors import Reason

_TENANTS = 10_000


@dataclass
class Counters:
    """Counters of one tenant since the start of the process.

    Attributes:
        evictions: entries that the cache deleted itself, by reason.
    """

    lookups: int = 0
    lookups_with_donor: int = 0
    fetches: int = 0
    admissions: int = 0
    corrupt_blobs: int = 0
    rejected_admissions: Counter[Reason] = field(default_factory=Counter)
    evictions: Counter[str] = field(default_factory=Counter)


class TenantCounters(dict[str, Counters]):
    """Counters by tenant; those of the tenant seen first are dropped at the limit."""

    def __missing__(self, tenant: str) -> Counters:
        if len(self) >= _TENANTS:
            del self[next(iter(self))]
        self[tenant] = Counters()
        return self[tenant]
