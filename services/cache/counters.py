"""Counters of the cache's process."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

from chorus_rpc.errors import INTERNAL, ChorusError, Reason

from services.runtime.metrics import BoundedLabels

_TENANTS = 10_000
# Tenants whose metrics have a label of their own.
TENANT_LABELS: Final = BoundedLabels(100)


@dataclass
class Counters:
    """Counters of one tenant since the start of the process.

    Attributes:
        existing_admissions: admissions of entries that the cache had already.
        saved_seconds: computation that the fetches saved.
        evictions: entries that the cache deleted itself, by reason.
    """

    lookups: int = 0
    lookups_with_donor: int = 0
    fetches: int = 0
    admissions: int = 0
    existing_admissions: int = 0
    corrupt_blobs: int = 0
    saved_seconds: float = 0.0
    rejected_admissions: Counter[Reason] = field(default_factory=Counter)
    evictions: Counter[str] = field(default_factory=Counter)

    def count_admission(self, commit: asyncio.Task[bool]) -> BaseException | None:
        """Counts an ended admission, whose result is whether it created an entry. Returns its error."""
        if commit.cancelled():
            return None
        if (error := commit.exception()) is not None:
            self.rejected_admissions[error.reason if isinstance(error, ChorusError) else INTERNAL] += 1
        elif commit.result():
            self.admissions += 1
        else:
            self.existing_admissions += 1
        return error

    def add(self, other: Counters) -> None:
        """Adds the counters of another tenant, or of the same one at another time."""
        self.lookups += other.lookups
        self.lookups_with_donor += other.lookups_with_donor
        self.fetches += other.fetches
        self.admissions += other.admissions
        self.existing_admissions += other.existing_admissions
        self.corrupt_blobs += other.corrupt_blobs
        self.saved_seconds += other.saved_seconds
        # Copied in one step: the event loop may count a new reason meanwhile.
        self.rejected_admissions.update(dict(other.rejected_admissions))
        self.evictions.update(dict(other.evictions))


class TenantCounters(dict[str, Counters]):
    """Counters by tenant; those of the tenant seen first are dropped at the limit."""

    def __init__(self) -> None:
        super().__init__()
        self._dropped: defaultdict[str, Counters] = defaultdict(Counters)
        self._dropping = Lock()

    def __missing__(self, tenant: str) -> Counters:
        if len(self) >= _TENANTS:
            with self._dropping:
                oldest = next(iter(self))
                self._dropped[TENANT_LABELS.add(oldest)].add(self.pop(oldest))
        self[tenant] = Counters()
        return self[tenant]

    def by_label(self) -> dict[str, Counters]:
        """Adds up the counters under each label, with those that were dropped, so that no sum ever falls.

        May be called from another thread than that of the event loop.
        """
        found: defaultdict[str, Counters] = defaultdict(Counters)
        with self._dropping:
            for label, counters in self._dropped.items():
                found[label].add(counters)
            present = dict(self)  # one step, during which the event loop adds no tenant
        for tenant, counters in present.items():
            found[TENANT_LABELS.add(tenant)].add(counters)
        return dict(found)
