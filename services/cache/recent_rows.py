"""Rows of recent lookups, kept for the fetch that follows."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable

from services.cache.entries import Entry


class RecentRows:
    """Rows of recent lookups, so that the fetch that follows does not query the index again.

    Rows never change, and this process drops the rows that it deletes. A row that another process deletes is
    served until it expires here, and its blobs exist for the sweeper's grace period, which is longer.
    """

    def __init__(self, seconds: float = 5.0, limit: int = 1_000) -> None:
        self._seconds, self._limit = seconds, limit
        self._rows: OrderedDict[tuple[str, str, str], tuple[float, Entry]] = OrderedDict()
        self.deletions = 0

    def put(self, space: str, entry: Entry) -> None:
        key = (space, entry.tenant, entry.entry_id)
        self._rows[key] = time.monotonic() + self._seconds, entry
        self._rows.move_to_end(key)
        while len(self._rows) > self._limit:
            self._rows.popitem(last=False)

    def get(self, space: str, tenant: str, entry_id: str) -> Entry | None:
        end, entry = self._rows.get((space, tenant, entry_id), (0.0, None))
        return entry if time.monotonic() < end else None

    def forget(self, space: str, tenant: str, entry_ids: Iterable[str]) -> None:
        self.deletions += 1
        for entry_id in entry_ids:
            self._rows.pop((space, tenant, entry_id), None)
