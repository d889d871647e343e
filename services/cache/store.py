"""Order of writes and deletes across two stores that share no transaction.

An admission reserves room, writes verified blobs, then the row. A purge removes the row; after a grace period
the sweeper deletes its blobs. An eviction removes the row and then, at once, the blobs that no other row
names, because it has to make room. A crash in between therefore leaves blobs that no row names, never a row
without blobs; the sweeper deletes them. If a blob of a row is missing or altered nevertheless, the fetch that
finds it counts as a miss and deletes the row. The sweeper deletes rows too: those older than the grace period
that name a missing blob. None of them deletes because of a missing blob while the store is not claimed by the
index: it may be the wrong store.

Blobs and rows of one tenant and identity change under one lock in this process. Another process on the same
stores may evict an entry while this one reads it, or write a blob that this one is about to delete: the
reader then finds the blob missing, which is a miss.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Final
from weakref import WeakValueDictionary

from chorus_rpc import semconv
from chorus_rpc.chunks import sha256
from chorus_rpc.errors import WRONG_STATE, ChorusError, not_found
from chorus_rpc.telemetry import span

from services.cache.blobs import Blobs
from services.cache.counters import TenantCounters
from services.cache.damage import CorruptBlob, Outcome, describe_damage
from services.cache.entries import Admission, Blob, Entry, Space, Uses, make_blob_key
from services.cache.eviction.ledger import EntryKey, Ledger
from services.cache.index import Hit, Index
from services.cache.ownership import Ownership, StoreClaim
from services.cache.recent_rows import RecentRows
from services.cache.room import UNBOUNDED, Capacity, Room, to_held
from services.cache.unsaved_uses import UnsavedUses
from services.runtime.logs import get_logger

log = get_logger("cache.store")

NO_SHARES: Final[Mapping[str, Sequence[str]]] = MappingProxyType({})


class LatentStore:
    """Latents and their index. Owns neither index nor blobs; close it first, since it waits for admissions.

    Call `load` before the first call: a ledger that lacks rows cannot keep the capacity.

    Args:
        capacity: upper bounds on the blobs of all entries.
        shares: for a tenant, the other tenants whose entries it may look up and fetch.
    """

    def __init__(
        self,
        index: Index,
        blobs: Blobs,
        capacity: Capacity = UNBOUNDED,
        shares: Mapping[str, Sequence[str]] = NO_SHARES,
    ) -> None:
        self.index = index
        self.blobs = blobs
        self._shares = shares
        self.claim = StoreClaim(blobs, index.index_id)
        self.counters = TenantCounters()
        self.failed_sweeps = 0  # since the start of the process
        self.start_ms = now_ms()
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._commits: set[asyncio.Task[bool]] = set()
        self._looked_up = RecentRows()
        self.ledger = Ledger()
        self.room = Room(self.ledger, capacity, self.evict, self.counters)
        self._unsaved = UnsavedUses()

    async def load(self) -> None:
        """Reads every row into the ledger, which then holds what the index holds."""
        found: set[EntryKey] = set()
        began = now_ms()
        for space in await self.index.spaces():
            async for page in self.index.every_entry(space):
                for entry in page:
                    key = EntryKey(space, entry.tenant, entry.entry_id)
                    found.add(key)
                    held = self.ledger.get(key)
                    if held is None or (held.pinned, held.expires_ms) != (entry.pinned, entry.expires_ms):
                        self._note(key, entry)
        for key in self.ledger:  # another process deleted these
            if key not in found and (held := self.ledger.get(key)) and held.created_ms < began:
                self.ledger.remove(key)

    def lock(self, tenant: str, identity: str) -> asyncio.Lock:
        """Returns the lock held while blobs of this tenant and identity are written with their row, or
        deleted."""
        return self._locks.setdefault((tenant, identity), asyncio.Lock())

    async def lookup(
        self,
        space: Space,
        tenant: str,
        identity: str,
        vector: Sequence[float],
        limit: int,
        min_score: float,
    ) -> list[Hit]:
        """Returns the entries nearest to `vector`, best first, with a score of at least `min_score`."""
        deleted = self._looked_up.deletions
        with span(semconv.SPAN_INDEX_SEARCH) as current:
            found = await asyncio.gather(
                *(
                    self.index.search(space.name, owner, identity, vector, limit, now_ms())
                    for owner in self._find_owners(tenant)
                )
            )
            hits = sorted(chain.from_iterable(found), key=lambda hit: hit.score, reverse=True)
            donors = [hit for hit in hits[:limit] if hit.score >= min_score]
            current.set_attribute(semconv.DONOR_COUNT, len(donors))
        if deleted == self._looked_up.deletions:  # otherwise one of these may have been deleted since
            for hit in donors:
                self._looked_up.put(space.name, hit.entry)
        counters = self.counters[tenant]
        counters.lookups += 1
        counters.lookups_with_donor += bool(donors)
        return donors

    async def find(self, space: Space, tenant: str, entry_id: str) -> Entry | None:
        """Returns the entry with an id, or None if it does not exist or has expired."""
        deleted = self._looked_up.deletions
        with span(semconv.SPAN_INDEX_GET, {semconv.ENTRY_ID: entry_id}):
            entry = await self.index.get(space.name, tenant, entry_id)
        if entry is not None and entry.is_expired(now_ms()):
            return None
        if entry is not None and deleted == self._looked_up.deletions:
            self._looked_up.put(space.name, entry)
        return entry

    async def fetch(
        self,
        space: Space,
        tenant: str,
        identity: str,
        entry_id: str,
        steps: Sequence[int],
        *,
        side_data: bool = False,
        total_steps: int = 0,
    ) -> AsyncGenerator[tuple[Blob, bytes]]:
        """Yields the verified blobs of `steps`, in that order, then the side data if requested and present.

        Raises NOT_FOUND for an entry that does not exist, belongs to another tenant or identity, or lacks a
        step; BLOB_CORRUPT for a blob that is missing or altered, after deleting the row, unless the blob is
        missing from a store that the index does not own.

        Args:
            total_steps: steps of the schedule. The share of them before the last of `steps` is taken for the
                share of the computation that this use saves; 0 if unknown.
        """
        entry = await self._find_readable(space, tenant, entry_id)
        if entry is None or entry.identity != identity or entry.is_expired(now_ms()):
            raise not_found("entry", entry_id)
        by_step = {blob.step: blob for blob in entry.blobs}
        for step in steps:
            if step not in by_step:
                raise not_found("step", str(step))
        key = EntryKey(space.name, entry.tenant, entry_id)
        share = min(1.0, max(steps) / total_steps) if total_steps else 0.0
        reading = self._read_blobs(space, entry, by_step, steps, side_data)
        with self.room.reading(key):
            async with aclosing(reading) as blobs:
                async for each in blobs:
                    yield each
        self.counters[tenant].fetches += 1
        self._use(key, entry.cost_seconds * share)

    def _find_owners(self, tenant: str) -> Sequence[str]:
        return (tenant, *self._shares.get(tenant, ()))

    async def _find_readable(self, space: Space, tenant: str, entry_id: str) -> Entry | None:
        """Returns the entry with an id that a tenant may read, its own or a shared one."""
        for owner in self._find_owners(tenant):
            if (entry := self._looked_up.get(space.name, owner, entry_id)) is not None:
                return entry
        for owner in self._find_owners(tenant):
            with span(semconv.SPAN_INDEX_GET, {semconv.ENTRY_ID: entry_id}):
                entry = await self.index.get(space.name, owner, entry_id)
            if entry is not None:
                return entry
        return None

    async def _read_blobs(
        self,
        space: Space,
        entry: Entry,
        by_step: Mapping[int | None, Blob],
        steps: Sequence[int],
        side_data: bool,
    ) -> AsyncGenerator[tuple[Blob, bytes]]:
        blobs = [by_step[step] for step in steps]
        if side_data and None in by_step:
            blobs.append(by_step[None])
        ahead: asyncio.Task[bytes] | None = None
        try:
            for i, blob in enumerate(blobs):
                try:
                    data = await (ahead or self._read(entry, blob))
                except CorruptBlob as fault:
                    outcome = await self.drop_damaged(space.name, entry, blob, missing=fault.missing)
                    raise describe_damage(entry, blob, fault, outcome) from None
                # Reads the next blob while this one is sent.
                following = blobs[i + 1] if i + 1 < len(blobs) else None
                ahead = None if following is None else asyncio.create_task(self._read(entry, following))
                yield blob, data
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    async def admit(self, admission: Admission) -> bool:
        """Stores an entry; returns False if it exists already.

        Once begun, the admission completes even if its caller is cancelled. Raises WRONG_STATE if the store
        belongs to another index, whose sweeper would delete the blobs.
        """
        commit = asyncio.create_task(self._commit(admission))
        self._commits.add(commit)
        commit.add_done_callback(partial(self._finish_commit, admission.entry.tenant))
        return await asyncio.shield(commit)

    async def delete_rows(self, space: str, tenant: str, entry_ids: Sequence[str]) -> None:
        """Deletes rows; the sweeper deletes their blobs."""
        try:
            await self.index.delete(space, tenant, entry_ids)
        finally:
            self._looked_up.forget(space, tenant, entry_ids)
        for entry_id in entry_ids:
            self._forget(EntryKey(space, tenant, entry_id))

    async def evict(self, key: EntryKey) -> None:
        """Deletes the row and blobs of an entry that the ledger no longer holds."""
        entry = await self.index.get(key.space, key.tenant, key.entry_id)
        if entry is None:
            return
        async with self.lock(key.tenant, entry.identity):
            with span(semconv.SPAN_INDEX_DELETE, {semconv.ENTRY_ID: key.entry_id}):
                await self.delete_rows(key.space, key.tenant, [key.entry_id])
            if self.claim.ownership is not Ownership.OWNED:
                return  # these may be another index's blobs
            try:
                await self.blobs.delete([each for each in entry.keys if not self.ledger.holds(each)])
            except ChorusError as error:
                log.warning("blobs of an evicted entry left to the sweeper", error=error.message)

    async def save_uses(self) -> None:
        """Writes the uses since the last call into the rows, so that they survive a restart."""
        for space, tenant, uses in self._unsaved.take():
            await self.index.add_uses(space, tenant, uses)
            self._looked_up.forget(space, tenant, uses)

    async def close(self) -> None:
        """Waits for running admissions and saves uses; each of their steps has a time limit."""
        if self._commits:
            await asyncio.wait(self._commits)
        try:
            await self.save_uses()
        except ChorusError as error:
            log.warning("uses not saved", error=error.message)

    async def _commit(self, admission: Admission) -> bool:
        entry, space = admission.entry, admission.space
        # Checked again, because a process of this index or of another one may have claimed the store since.
        unowned = self.claim.ownership is not Ownership.OWNED
        if unowned and await self.claim.check() is Ownership.FOREIGN:
            raise ChorusError(
                WRONG_STATE,
                "the cache's object store belongs to another index; `chorus cache adopt` claims it",
            )
        key = EntryKey(space.name, entry.tenant, entry.entry_id)
        if key in self.ledger and (known := await self.find(space, entry.tenant, entry.entry_id)) is not None:
            if known.kept_as_long_as(entry) != known:
                await self._keep_longer(key, admission)
            return False  # no entry has to make room for it
        async with (
            self.room.reserve(entry.tenant, entry.size_bytes, pinned=entry.pinned),
            self.lock(entry.tenant, entry.identity),
        ):
            with span(semconv.SPAN_INDEX_GET, {semconv.ENTRY_ID: entry.entry_id}):
                former = await self.index.get(space.name, entry.tenant, entry.entry_id)
                if former is not None and not former.is_expired(now_ms()):
                    return False
            nearest = await self.index.search(
                space.name, entry.tenant, entry.identity, admission.vector, 1, now_ms()
            )
            if nearest:
                entry = replace(entry, similarity=max(0.0, nearest[0].score))
            written = await asyncio.gather(
                *(self._write(entry, digest, data) for digest, data in admission.data.items()),
                return_exceptions=True,  # the lock is held until the last write has ended
            )
            for failure in filter(None, written):
                raise failure
            with span(semconv.SPAN_INDEX_UPSERT, {semconv.ENTRY_ID: entry.entry_id}):
                await self.index.upsert(space, entry, admission.vector)
            self._note(key, entry)
        return True

    async def _keep_longer(self, key: EntryKey, admission: Admission) -> None:
        """Gives an entry that exists the retention of a further admission, if that is longer."""
        entry, space = admission.entry, admission.space
        async with self.lock(entry.tenant, entry.identity):
            former = await self.index.get(space.name, entry.tenant, entry.entry_id)
            if former is None:
                return  # purged since
            kept = former.kept_as_long_as(entry)
            if kept.pinned and not former.pinned:
                self.room.check_pin(entry.tenant, former.size_bytes)
            with span(semconv.SPAN_INDEX_UPSERT, {semconv.ENTRY_ID: entry.entry_id}):
                await self.index.upsert(space, kept, admission.vector)
            self._looked_up.forget(space.name, entry.tenant, [entry.entry_id])
            self._note(key, kept)

    def _note(self, key: EntryKey, entry: Entry) -> None:
        self.ledger.add(key, to_held(entry), entry.keys)

    def _use(self, key: EntryKey, saved_seconds: float) -> None:
        now = now_ms()
        self.counters[key.tenant].saved_seconds += saved_seconds
        self.ledger.use(key, now, saved_seconds)
        self._unsaved.add(key, Uses(1, saved_seconds, now))

    def _forget(self, key: EntryKey) -> None:
        self.ledger.remove(key)
        self._unsaved.forget(key)

    def _finish_commit(self, tenant: str, commit: asyncio.Task[bool]) -> None:
        self._commits.discard(commit)
        # Retrieved here too, because the caller may have been cancelled.
        if (error := self.counters[tenant].count_admission(commit)) is not None:
            log.warning("admission failed", error=str(error))

    async def _write(self, entry: Entry, digest: str, data: bytes) -> None:
        with span(semconv.SPAN_BLOB_PUT, {semconv.BYTES: len(data)}):
            # Even if the key exists: its blob may be altered, or about to be swept.
            await self.blobs.put(make_blob_key(entry.tenant, entry.identity, digest), data)

    async def _read(self, entry: Entry, blob: Blob) -> bytes:
        """Returns a blob. Raises CorruptBlob if it is missing or altered."""
        step = {} if blob.step is None else {semconv.STEP_INDEX: blob.step}
        with span(semconv.SPAN_BLOB_GET, {semconv.BYTES: blob.size_bytes, **step}):
            key = make_blob_key(entry.tenant, entry.identity, blob.digest)
            data = await self.blobs.get(key, blob.size_bytes)
            if data is not None and await asyncio.to_thread(sha256, data) == blob.digest:
                return data
        # After the span: the object store answered, so its call did not fail.
        raise CorruptBlob(missing=data is None)

    async def drop_damaged(self, space: str, entry: Entry, blob: Blob, *, missing: bool) -> Outcome:
        """Deletes the row of a missing or altered blob, unless another admission replaced it since, or the
        blob is missing from a store that the index does not own."""
        if missing and await self.is_replaced(space, entry):
            self._looked_up.forget(space, entry.tenant, [entry.entry_id])
            return "replaced"
        key = make_blob_key(entry.tenant, entry.identity, blob.digest)
        log.error("blob corrupt", entry_id=entry.entry_id, key=key, missing=missing)
        self.counters[entry.tenant].corrupt_blobs += 1
        if missing and self.claim.ownership is not Ownership.OWNED:
            return "kept"
        try:
            with span(semconv.SPAN_INDEX_DELETE, {semconv.ENTRY_ID: entry.entry_id}):
                await self.delete_rows(space, entry.tenant, [entry.entry_id])
        except ChorusError as error:
            # The next reader finds the row again.
            log.warning("row not deleted", entry_id=entry.entry_id, error=error.message)
        return "deleted"

    async def is_replaced(self, space: str, entry: Entry) -> bool:
        """Returns whether a row was deleted, and perhaps admitted again, since it was read.

        A sweep that followed may have deleted its blobs: their age counts from their last write.
        """
        try:
            found = await self.index.get(space, entry.tenant, entry.entry_id)
        except ChorusError:
            return False
        return found is None or (found.created_ms, found.blobs) != (entry.created_ms, entry.blobs)


def now_ms() -> int:
    return time.time_ns() // 1_000_000
