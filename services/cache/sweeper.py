"""Removes leftovers of crashes and purges: blobs that no row names, rows whose blobs are missing.

Only in a store that the index owns, see `ownership`. A store without a marker is claimed if a survey finds no
leftovers at all: an empty store and an empty index, or those of a version that wrote no markers.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chorus_rpc.errors import ChorusError

from services.cache.blobs import BlobStat
from services.cache.entries import BLOB_ROOT
from services.cache.ownership import Ownership
from services.cache.store import LatentStore, now_ms
from services.runtime.logs import get_logger

log = get_logger("cache.sweeper")

# Blobs, and the parts that a killed write leaves. A file of another name is not ours.
_OWN = re.compile(
    rf"{BLOB_ROOT}/(?P<tenant>[^/]+)/(?P<identity>[0-9a-f]{{64}})/([0-9a-f]{{64}}\.safetensors|[0-9a-f]{{32}}\.part)"
)
_ADOPT = "; `chorus cache adopt` claims it for this index"


@dataclass(frozen=True)
class SweepResult:
    """Numbers of blobs and rows that one sweep removed."""

    blobs: int
    rows: int


class BrokenRow(NamedTuple):
    """A row with a blob that the store lacks. Not the whole entry: a wrong store has one for every row."""

    space: str
    tenant: str
    identity: str
    entry_id: str
    created_ms: int


@dataclass(frozen=True)
class Survey:
    """Differences between the object store and the index.

    Attributes:
        orphans: blobs, whole and partial, that no row names.
        broken: rows with a blob that the store lacks. An admission that ended during the survey may be among
            them.
    """

    orphans: Sequence[BlobStat]
    broken: Sequence[BrokenRow]


@dataclass(frozen=True)
class Adoption:
    """Result of an adoption: the owners before, and what later sweeps delete."""

    previous_owners: Sequence[str]
    orphaned_blobs: int
    orphaned_bytes: int
    broken_entries: int


async def survey(store: LatentStore) -> Survey:
    """Compares every blob with every row. Raises DEPENDENCY_UNAVAILABLE."""
    # Blobs before rows: a blob older than the grace has its row by now, or never will.
    blobs: dict[str, BlobStat] = {}
    async for page in store.blobs.list():
        blobs.update((blob.key, blob) for blob in page)
    named: set[str] = set()
    broken: list[BrokenRow] = []
    for space in await store.index.spaces():
        async for entries in store.index.every_entry(space):
            for entry in entries:
                named.update(entry.keys)
                if not blobs.keys() >= set(entry.keys):
                    row = BrokenRow(space, entry.tenant, entry.identity, entry.entry_id, entry.created_ms)
                    broken.append(row)
    orphans = [blob for key, blob in blobs.items() if key not in named and _OWN.fullmatch(key)]
    return Survey(orphans, broken)


async def sweep(store: LatentStore, grace_seconds: float) -> SweepResult:
    """Runs one pass. Keeps everything younger than the grace period: it may belong to a running admission.

    Removes nothing from a store that the index does not own. Raises DEPENDENCY_UNAVAILABLE when index or
    object store do not answer; the next pass removes the rest.
    """
    cutoff = now_ms() - int(grace_seconds * 1000)
    if await store.claim.check() is Ownership.FOREIGN:
        _report_foreign(store)
        return SweepResult(0, 0)
    found = await survey(store)
    if store.claim.ownership is not Ownership.OWNED:
        await _claim_matching(store, found)
        return SweepResult(0, 0)

    rows = 0
    for row in found.broken:
        if row.created_ms < cutoff:
            rows += await _drop_row(store, row, cutoff)

    old: dict[tuple[str, str], list[str]] = defaultdict(list)
    for blob in found.orphans:
        own = _OWN.fullmatch(blob.key)
        if own and blob.modified_ms < cutoff:
            old[own["tenant"], own["identity"]].append(blob.key)
    blobs = 0
    for (tenant, identity), keys in old.items():
        blobs += await _drop_blobs(store, tenant, identity, keys, cutoff)
    return SweepResult(blobs, rows)


async def claim_if_empty(store: LatentStore) -> None:
    """Claims an empty store for an empty index, at the start: later ones contain what was admitted since.

    A larger store is left to the first sweep. An object store that cannot be written to keeps no cache from
    serving; the next sweep tries again.
    """
    try:
        if await store.claim.check() is Ownership.FOREIGN:
            _report_foreign(store)
        elif store.claim.ownership is Ownership.UNCLAIMED and await _is_empty(store):
            await _claim_matching(store, await survey(store))
    except ChorusError as error:
        log.warning("object store not claimed", error=error.message)


async def adopt(store: LatentStore, *, validate_only: bool) -> Adoption:
    """Claims the store for this index, whatever it contains, and reports what sweeps will delete."""
    await store.claim.check()
    previous = [owner for owner in store.claim.owners if owner != store.claim.index_id]
    found = await survey(store)
    if not validate_only:
        await store.claim.adopt()
        log.info("object store adopted", index_id=store.claim.index_id, previous_owners=previous)
    return Adoption(
        previous_owners=previous,
        orphaned_blobs=len(found.orphans),
        orphaned_bytes=sum(blob.size_bytes for blob in found.orphans),
        broken_entries=len(found.broken),
    )


async def _is_empty(store: LatentStore) -> bool:
    async for page in store.blobs.list():
        return not page
    return True


async def _claim_matching(store: LatentStore, found: Survey) -> None:
    """Claims an unclaimed store if blobs and rows match, so that a sweep would delete nothing."""
    broken = False
    for row in found.broken:
        # The first one decides: in a wrong store every row lacks its blobs.
        if broken := await _is_broken(store, row):
            break
    if found.orphans or broken:
        log.warning(
            "object store not swept: it is not claimed, and it does not match the index" + _ADOPT,
            index_id=store.claim.index_id,
            blobs_without_entry=len(found.orphans),
            entries_without_blobs=len(found.broken),
        )
    elif await store.claim.claim() is Ownership.OWNED:
        log.info("object store claimed", index_id=store.claim.index_id)
    else:
        _report_foreign(store)


def _report_foreign(store: LatentStore) -> None:
    log.warning(
        "object store not swept: it belongs to another index" + _ADOPT,
        index_id=store.claim.index_id,
        owners=store.claim.owners,
    )


async def _is_broken(store: LatentStore, row: BrokenRow) -> bool:
    """Returns whether a row still exists and lacks a blob."""
    found = await store.index.get(row.space, row.tenant, row.entry_id)
    return found is not None and not all([await store.blobs.stat(key) for key in found.keys])


async def _drop_row(store: LatentStore, row: BrokenRow, cutoff: int) -> bool:
    async with store.lock(row.tenant, row.identity):
        # It may have been admitted again since it was listed.
        found = await store.index.get(row.space, row.tenant, row.entry_id)
        if found is None or found.created_ms >= cutoff:
            return False
        if all([await store.blobs.stat(key) for key in found.keys]):
            return False
        await store.delete_rows(row.space, row.tenant, [row.entry_id])
    store.counters[row.tenant].corrupt_blobs += 1
    log.warning("row without blobs deleted", entry_id=row.entry_id)
    return True


async def _drop_blobs(store: LatentStore, tenant: str, identity: str, keys: list[str], cutoff: int) -> int:
    async with store.lock(tenant, identity):
        # Another index may have adopted the store during the survey.
        if not await store.claim.is_marked():
            return 0
        # An admission that named one of them since has written it again.
        expired = [
            key for key in keys if (found := await store.blobs.stat(key)) and found.modified_ms < cutoff
        ]
        await store.blobs.delete(expired)
    return len(expired)


async def maintain(store: LatentStore) -> None:
    """Saves uses, learns what other processes admitted and deleted, and removes expired entries."""
    await store.save_uses()
    await store.load()
    if expired := await store.room.remove_expired(now_ms()):
        log.info("expired entries removed", entries=expired)


class Sweeper:
    """Sweeps and maintains at an interval."""

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
                await maintain(self._store)
            except Exception as error:  # A failed sweep must not be the last one.
                self._store.failed_sweeps += 1
                log.warning("sweep failed", exc_info=error)
            await asyncio.sleep(self._interval)
