"""Removes leftovers of crashes and purges: blobs that no row names, rows whose blobs are missing."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from dataclasses import dataclass

from services.cache.entries import BLOB_ROOT, Entry
from services.cache.store import LatentStore, now_ms
from services.runtime.logs import get_logger

log = get_logger("cache.sweeper")

# Blobs, and the parts that a killed write leaves. A file of another name is not ours.
_OWN = re.compile(
    rf"{BLOB_ROOT}/(?P<tenant>[^/]+)/(?P<identity>[0-9a-f]{{64}})/([0-9a-f]{{64}}\.safetensors|[0-9a-f]{{32}}\.part)"
)


@dataclass(frozen=True)
class SweepResult:
    """Numbers of blobs and rows that one sweep removed."""

    blobs: int
    rows: int


async def sweep(store: LatentStore, grace_seconds: float) -> SweepResult:
    """Runs one pass. Keeps everything younger than the grace period: it may belong to a running admission.

    Raises DEPENDENCY_UNAVAILABLE when index or object store do not answer; the next pass removes the rest.
    """
    cutoff = now_ms() - int(grace_seconds * 1000)
    # Blobs before rows: a blob older than the grace has its row by now, or never will.
    present: set[str] = set()
    old: dict[tuple[str, str], list[str]] = defaultdict(list)
    async for page in store.blobs.list():
        for blob in page:
            present.add(blob.key)
            own = _OWN.fullmatch(blob.key)
            if own and blob.modified_ms < cutoff:
                old[own["tenant"], own["identity"]].append(blob.key)

    named: set[str] = set()
    rows = 0
    for space in await store.index.spaces():
        broken: list[Entry] = []
        async for entries in store.index.every_entry(space):
            for entry in entries:
                named.update(entry.keys)
                if entry.created_ms < cutoff and not present.issuperset(entry.keys):
                    broken.append(entry)
        for entry in broken:
            rows += await _drop_row(store, space, entry, cutoff)

    blobs = 0
    for (tenant, identity), keys in old.items():
        orphans = [key for key in keys if key not in named]
        if orphans:
            blobs += await _drop_blobs(store, tenant, identity, orphans, cutoff)
    return SweepResult(blobs, rows)


async def _drop_row(store: LatentStore, space: str, entry: Entry, cutoff: int) -> bool:
    async with store.lock(entry.tenant, entry.identity):
        # It may have been admitted again since it was listed.
        found = await store.index.get(space, entry.tenant, entry.entry_id)
        if found is None or found.created_ms >= cutoff:
            return False
        if all([await store.blobs.stat(key) for key in found.keys]):
            return False
        await store.delete_rows(space, entry.tenant, [entry.entry_id])
    store.counters.corrupt_blobs += 1
    log.warning("row without blobs deleted", entry_id=entry.entry_id)
    return True


async def _drop_blobs(store: LatentStore, tenant: str, identity: str, keys: list[str], cutoff: int) -> int:
    async with store.lock(tenant, identity):
        # An admission that named one of them since has written it again.
        expired = [
            key for key in keys if (found := await store.blobs.stat(key)) and found.modified_ms < cutoff
        ]
        await store.blobs.delete(expired)
    return len(expired)


class Sweeper:
    """Sweeps at an interval."""

    def __init__(self, store: LatentStore, interval_seconds: float, grace_seconds: float) -> None:
        self._store = store
        self._interval = interval_seconds
        self._grace = grace_seconds

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            try:
                result = await sweep(self._store, self._grace)
                if result.blobs or result.rows:
                    log.info("sweep removed leftovers", blobs=result.blobs, rows=result.rows)
            except Exception as error:  # A failed sweep must not be the last one.
                log.warning("sweep failed", exc_info=error)
            await asyncio.sleep(self._interval)
