"""Compares the blobs of a tenant's entries with their digests, in the object store itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

from chorus_rpc.chunks import sha256
from chorus_rpc.errors import not_found

from services.cache.entries import Blob, Entry
from services.cache.eviction.ledger import EntryKey
from services.cache.index import Selection
from services.cache.store import LatentStore

_REPORT_SECONDS = 1.0
_REPORTED = 100  # damaged entries of one report


@dataclass(frozen=True)
class Damage:
    """An entry with a blob that is missing, or else altered."""

    entry_id: str
    blob: Blob
    missing: bool
    deleted: bool


@dataclass(frozen=True)
class Progress:
    """Numbers of entries and bytes verified so far, and the damage found since the previous report."""

    entries: int = 0
    size_bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)


async def verify(store: LatentStore, tenant: str, entry_id: str, *, repair: bool) -> AsyncGenerator[Progress]:
    """Reads the blobs of one entry, or of all, one after the other.

    Yields about once a second and at the end. An entry that is deleted meanwhile is left out. Raises
    NOT_FOUND for an id that no entry has, and the errors of the stores.

    Args:
        entry_id: empty for every entry of the tenant.
        repair: whether to delete damaged entries.
    """
    keys = await _select(store, tenant, entry_id)
    if entry_id and not keys:
        raise not_found("entry", entry_id)
    progress, reported = Progress(), time.monotonic()
    for key in keys:
        if (entry := await store.index.get(key.space, key.tenant, key.entry_id)) is None:
            continue
        damage = await _verify(store, key.space, entry, repair=repair)
        progress = replace(
            progress, entries=progress.entries + 1, size_bytes=progress.size_bytes + entry.size_bytes
        )
        if damage is not None:
            progress.damaged.append(damage)
        if time.monotonic() - reported >= _REPORT_SECONDS or len(progress.damaged) >= _REPORTED:
            yield progress
            progress, reported = replace(progress, damaged=[]), time.monotonic()
    yield progress


async def _select(store: LatentStore, tenant: str, entry_id: str) -> list[EntryKey]:
    """Returns keys only: rows of many entries take more memory, and may change before their turn."""
    selection = Selection(entry_id=entry_id or None)
    return [
        EntryKey(space, tenant, each.entry_id)
        for space in await store.index.spaces()
        async for page in store.index.select(space, tenant, selection)
        for each in page
    ]


async def _verify(store: LatentStore, space: str, entry: Entry, *, repair: bool) -> Damage | None:
    with store.room.reading(EntryKey(space, entry.tenant, entry.entry_id)):
        for key, blob in zip(entry.keys, entry.blobs, strict=True):
            data = await store.blobs.get_stored(key, blob.size_bytes)
            if data is not None and await asyncio.to_thread(sha256, data) == blob.digest:
                continue
            missing = data is None
            if repair:
                outcome = await store.drop_damaged(space, entry, blob, missing=missing)
            else:
                outcome = "replaced" if await store.is_replaced(space, entry) else "kept"
            if outcome != "replaced":
                return Damage(entry.entry_id, blob, missing, deleted=outcome == "deleted")
    return None
