"""Verifies the order of writes and deletes on a real index and directory, with failures in between."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chorus_rpc import semconv, telemetry
from chorus_rpc.errors import (
    BLOB_CORRUPT,
    DEPENDENCY_UNAVAILABLE,
    NOT_FOUND,
    ChorusError,
    Reason,
    unavailable,
)
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.cache.directory import DirectoryBlobs
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import Admission, Entry, Space
from services.cache.index import Hit, Selection
from services.cache.store import LatentStore
from services.cache.sweeper import Sweeper, SweepResult, claim_if_empty, sweep
from services.cache.upload import Upload
from services.cache.usage import measure_usage, purge
from services.cache.validation import Limits
from tests.contract.samples import SPACE, admission, latents, new_entry, unit

GRACE = 600.0
LIMITS = Limits(prompt=200, blob=1 << 20, entry=1 << 20)


def offered(
    prompt: str = "a red circle", blobs: dict[int, bytes] | None = None, tenant: str = "default"
) -> Admission:
    upload = Upload(tenant, LIMITS)
    for message in admission(new_entry(prompt), blobs or {1: latents(1), 2: latents(2)}, 1 << 20):
        upload.add(message)
    return upload.finish(1_000)


class Interruption:
    """Makes operations fail or wait, and records them."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.rows_read = 0
        self.failing: set[str] = set()
        self.held: dict[str, asyncio.Event] = {}
        self.reached = asyncio.Event()
        self._called = asyncio.Condition()

    async def note(self, operation: str) -> None:
        async with self._called:
            self.calls.append(operation)
            self._called.notify_all()

    async def until(self, operation: str, count: int) -> None:
        async with asyncio.timeout(60), self._called:
            await self._called.wait_for(lambda: self.calls.count(operation) >= count)

    async def before(self, operation: str) -> None:
        await self.note(operation)
        if operation in self.failing:
            raise unavailable("fault", operation)
        if operation in self.held:
            self.reached.set()
            await self.held[operation].wait()


class FaultyBlobs(DirectoryBlobs):
    """Real directory whose operations can fail or wait."""

    fault: Interruption

    async def put(self, key: str, data: bytes) -> None:
        await self.fault.before("put")
        await super().put(key, data)

    async def delete(self, keys: Sequence[str]) -> None:
        await self.fault.before("delete blobs")
        await super().delete(keys)
        await self.fault.note("deleted blobs")


class FaultyIndex(EmbeddedIndex):
    """Real Milvus Lite whose operations can fail or wait."""

    fault: Interruption

    async def upsert(self, space: Space, entry: Entry, vector: Sequence[float]) -> None:
        await self.fault.before("upsert")
        await super().upsert(space, entry, vector)

    async def get(self, space: str, tenant: str, entry_id: str) -> Entry | None:
        self.fault.rows_read += 1
        return await super().get(space, tenant, entry_id)

    async def delete(self, space: str, tenant: str, entry_ids: Sequence[str]) -> None:
        await self.fault.before("delete rows")
        await super().delete(space, tenant, entry_ids)


@pytest.fixture
async def fault() -> Interruption:
    return Interruption()


@pytest.fixture
async def store(tmp_path: Path, fault: Interruption) -> AsyncIterator[LatentStore]:
    index = await FaultyIndex.open_path(str(tmp_path / "index.db"), seconds=30)
    blobs = await FaultyBlobs.open(tmp_path / "blobs", seconds=30, threads=4)
    assert isinstance(index, FaultyIndex)
    assert isinstance(blobs, FaultyBlobs)
    index.fault = blobs.fault = fault
    store = LatentStore(index, blobs)
    await claim_if_empty(store)
    fault.calls.clear()
    yield store
    await store.close()
    await blobs.close()
    await index.close()


async def found(store: LatentStore, tenant: str = "default") -> list[Entry]:
    hits = await store.lookup(SPACE, tenant, offered().entry.identity, unit(0), 16, -1.0)
    return [hit.entry for hit in hits]


async def fetched(store: LatentStore, entry: Entry, *steps: int, tenant: str = "default") -> list[bytes]:
    return [data async for _, data in store.fetch(SPACE, tenant, entry.identity, entry.entry_id, steps)]


def files(root: Path) -> list[Path]:
    """Returns the files in the directory of blobs, without the owner's marker."""
    return sorted(
        path for path in (root / "blobs").rglob("*") if path.is_file() and path.parent.name != ".owners"
    )


def age(root: Path, seconds: float = 2 * GRACE) -> None:
    """Makes every blob older than the grace period."""
    for path in files(root):
        stat = path.stat()
        os.utime(path, (stat.st_atime - seconds, stat.st_mtime - seconds))


async def refused(reason: Reason, call: Awaitable[object]) -> ChorusError:
    with pytest.raises(ChorusError) as failed:
        await call
    assert failed.value.reason == reason
    return failed.value


async def test_admit_writes_blobs_before_the_row(store: LatentStore, fault: Interruption) -> None:
    assert await store.admit(offered())
    assert fault.calls == ["put", "put", "upsert"]
    assert await found(store) == [offered().entry]
    assert await fetched(store, offered().entry, 2, 1) == [latents(2), latents(1)]
    assert (store.counters["default"].lookups, store.counters["default"].lookups_with_donor) == (1, 1)
    assert (store.counters["default"].admissions, store.counters["default"].fetches) == (1, 1)


async def test_admit_of_an_existing_entry_writes_nothing(store: LatentStore, fault: Interruption) -> None:
    created = await asyncio.gather(*(store.admit(offered()) for _ in range(5)))
    assert sorted(created) == [False] * 4 + [True]
    assert fault.calls == ["put", "put", "upsert"]
    assert len(await found(store)) == 1
    assert store.counters["default"].admissions == 1


async def test_admit_writes_no_row_if_a_blob_fails(store: LatentStore, fault: Interruption) -> None:
    fault.failing.add("put")
    await refused(DEPENDENCY_UNAVAILABLE, store.admit(offered()))
    assert "upsert" not in fault.calls
    assert await found(store) == []


async def test_sweep_deletes_orphaned_blobs_after_the_grace_period(
    store: LatentStore, fault: Interruption, tmp_path: Path
) -> None:
    fault.failing.add("upsert")
    await refused(DEPENDENCY_UNAVAILABLE, store.admit(offered()))
    assert len(files(tmp_path)) == 2
    assert await sweep(store, GRACE) == SweepResult(blobs=0, rows=0)
    age(tmp_path)
    assert await sweep(store, GRACE) == SweepResult(blobs=2, rows=0)
    assert files(tmp_path) == []


async def test_admit_completes_after_its_caller_is_cancelled(store: LatentStore, fault: Interruption) -> None:
    fault.held["upsert"] = asyncio.Event()
    caller = asyncio.create_task(store.admit(offered()))
    await fault.reached.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    fault.held["upsert"].set()
    await store.close()
    assert await found(store) == [offered().entry]


@pytest.mark.parametrize("damage", ["missing", "shorter", "longer", "altered"])
async def test_corrupt_blob_deletes_the_row(store: LatentStore, tmp_path: Path, damage: str) -> None:
    await store.admit(offered("broken", {1: latents(1)}))
    await store.admit(offered("whole", {1: latents(9)}))
    broken = tmp_path / "blobs" / offered("broken", {1: latents(1)}).entry.keys[0]
    match damage:
        case "missing":
            broken.unlink()
        case "shorter":
            broken.write_bytes(latents(1)[:-1])
        case "longer":
            broken.write_bytes(latents(1) + b"\0")
        case "altered":
            broken.write_bytes(latents(1)[:-1] + b"?")
    entry = offered("broken", {1: latents(1)}).entry
    error = await refused(BLOB_CORRUPT, fetched(store, entry, 1))
    assert error.metadata == {"entry": entry.entry_id, "step": "1"}
    assert store.counters["default"].corrupt_blobs == 1
    assert [each.prompt for each in await found(store)] == ["whole"]
    await refused(NOT_FOUND, fetched(store, entry, 1))
    # The same request may be admitted again, with an intact blob.
    assert await store.admit(offered("broken", {1: latents(1)}))
    assert await fetched(store, entry, 1) == [latents(1)]


async def test_corrupt_blob_is_reported_even_if_the_row_remains(
    store: LatentStore, fault: Interruption, tmp_path: Path
) -> None:
    await store.admit(offered())
    for path in files(tmp_path):
        path.unlink()
    fault.failing.add("delete rows")
    await refused(BLOB_CORRUPT, fetched(store, offered().entry, 1))


async def test_fetch_finds_no_entry_of_another_tenant(store: LatentStore) -> None:
    await store.admit(offered(tenant="theirs"))
    entry = offered(tenant="theirs").entry
    assert await found(store, "mine") == []
    await refused(NOT_FOUND, fetched(store, entry, 1, tenant="mine"))
    assert (await purge(store, "mine", Selection(entry_id=entry.entry_id))).entries == 0
    assert await fetched(store, entry, 1, tenant="theirs") == [latents(1)]


async def test_fetch_of_a_missing_step_is_not_found(store: LatentStore) -> None:
    await store.admit(offered())
    error = await refused(NOT_FOUND, fetched(store, offered().entry, 1, 3))
    assert error.metadata == {"step": "3"}
    assert len(await found(store)) == 1


async def test_fetch_after_lookup_does_not_query_the_index(store: LatentStore, fault: Interruption) -> None:
    await store.admit(offered())
    [entry] = await found(store)
    before = fault.rows_read
    assert await fetched(store, entry, 1, 2) == [latents(1), latents(2)]
    assert fault.rows_read == before
    # Recent rows are bound to their tenant and identity, and are dropped with the row.
    await refused(NOT_FOUND, fetched(store, entry, 1, tenant="other"))
    await refused(NOT_FOUND, fetched(store, replace(entry, identity="0" * 64), 1))
    await purge(store, "default", Selection())
    await refused(NOT_FOUND, fetched(store, entry, 1))


async def test_recent_rows_expire(
    store: LatentStore, fault: Interruption, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.admit(offered())
    [entry] = await found(store)
    before = fault.rows_read
    later = time.monotonic() + 10
    monkeypatch.setattr("services.cache.store.time.monotonic", lambda: later)
    assert len(await fetched(store, entry, 1)) == 1
    assert fault.rows_read == before + 1


async def test_row_deleted_by_another_process_is_not_found_without_its_blobs(
    store: LatentStore, tmp_path: Path
) -> None:
    # The age of a blob counts from its last write, so a sweep may follow a purge at once.
    reader = LatentStore(store.index, store.blobs)
    await reader.claim.check()
    for again in (None, offered(blobs={1: latents(8), 2: latents(9)})):
        await store.admit(offered())
        [entry] = await found(reader)
        await purge(store, "default", Selection())
        age(tmp_path)
        assert (await sweep(store, GRACE)).blobs == 2
        if again is not None:
            await store.admit(again)
        await refused(NOT_FOUND, fetched(reader, entry, 1))
        assert await found(reader) == ([] if again is None else [again.entry])
    assert await fetched(reader, offered().entry, 1) == [latents(8)]
    assert reader.counters["default"].corrupt_blobs == 0


async def test_lookup_omits_donors_below_the_minimum_score(store: LatentStore) -> None:
    await store.admit(offered())
    identity = offered().entry.identity
    [hit] = await store.lookup(SPACE, "default", identity, unit(5), 4, -1.0)
    assert await store.lookup(SPACE, "default", identity, unit(5), 4, hit.score) == [hit]
    assert await store.lookup(SPACE, "default", identity, unit(5), 4, min(1.0, hit.score + 1e-3)) == []
    assert (store.counters["default"].lookups, store.counters["default"].lookups_with_donor) == (3, 2)


@pytest.mark.parametrize("deleted_meanwhile", [False, True])
async def test_the_span_of_the_search_records_the_number_of_donors(
    store: LatentStore, monkeypatch: pytest.MonkeyPatch, deleted_meanwhile: bool
) -> None:
    await store.admit(offered())
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    monkeypatch.setattr(telemetry, "_enabled", True)
    if deleted_meanwhile:
        search = store.index.search

        async def search_during_a_deletion(*arguments: Any) -> list[Hit]:
            hits = await search(*arguments)
            await store.delete_rows(SPACE.name, "default", ["0" * 64])
            return hits

        monkeypatch.setattr(store.index, "search", search_during_a_deletion)
    assert len(await found(store)) == 1
    [span] = [span for span in exporter.get_finished_spans() if span.name == semconv.SPAN_INDEX_SEARCH]
    assert dict(span.attributes or {}) == {semconv.DONOR_COUNT: 1}


async def test_purge_deletes_rows_at_once_and_blobs_after_the_grace_period(
    store: LatentStore, tmp_path: Path
) -> None:
    for i in range(3):
        await store.admit(offered(f"prompt {i}", {1: latents(i)}))
    size = len(latents(0))
    before = await measure_usage(store.index, "default")
    assert (before.entries, before.size_bytes) == (3, 3 * size)
    gone = await purge(store, "default", Selection(entry_id=offered("prompt 0").entry.entry_id))
    assert (gone.entries, gone.size_bytes) == (1, size)
    assert (await purge(store, "default", Selection(model_id="another"))).entries == 0
    assert (await purge(store, "default", Selection())).entries == 2
    assert (await purge(store, "default", Selection())).entries == 0
    assert await found(store) == []
    assert len(files(tmp_path)) == 3
    age(tmp_path)
    assert await sweep(store, GRACE) == SweepResult(blobs=3, rows=0)


async def test_sweep_keeps_a_blob_of_another_row(store: LatentStore, tmp_path: Path) -> None:
    shared = {1: latents(1)}
    first, second = offered("first", shared), offered("second", shared)
    assert first.entry.keys == second.entry.keys
    assert await store.admit(first)
    assert await store.admit(second)
    assert (await measure_usage(store.index, "default")).size_bytes == len(latents(1))
    await purge(store, "default", Selection(entry_id=first.entry.entry_id))
    age(tmp_path)
    assert await sweep(store, GRACE) == SweepResult(blobs=0, rows=0)
    assert await fetched(store, second.entry, 1) == [latents(1)]


async def test_sweep_deletes_rows_without_blobs_and_partial_writes(
    store: LatentStore, tmp_path: Path
) -> None:
    await store.admit(offered("kept", {1: latents(1)}))
    await store.admit(offered("broken", {1: latents(2), 2: latents(3)}))
    (tmp_path / "blobs" / offered("broken", {1: latents(2)}).entry.keys[0]).unlink()
    (files(tmp_path)[0].parent / ("0" * 32 + ".part")).write_bytes(b"half")
    foreign = tmp_path / "blobs" / "v1" / "notes.txt"
    foreign.write_text("not ours")
    age(tmp_path)
    # The blobs of the broken row are orphans only after its deletion.
    assert await sweep(store, GRACE) == SweepResult(blobs=1, rows=1)
    assert [each.prompt for each in await found(store)] == ["kept"]
    assert await sweep(store, GRACE) == SweepResult(blobs=1, rows=0)
    assert await fetched(store, offered("kept").entry, 1) == [latents(1)]
    assert foreign.exists()


async def test_entry_admitted_again_during_a_sweep_is_complete(
    store: LatentStore, fault: Interruption, tmp_path: Path
) -> None:
    await store.admit(offered())
    await purge(store, "default", Selection())
    age(tmp_path)
    # The sweep has selected its orphans and holds the lock; the admission must follow it or keep them.
    fault.held["delete blobs"] = asyncio.Event()
    sweeping = asyncio.create_task(sweep(store, GRACE))
    await fault.reached.wait()
    admitting = asyncio.create_task(store.admit(offered()))
    fault.held["delete blobs"].set()
    assert (await sweeping).blobs == 2
    assert await admitting
    assert await fetched(store, offered().entry, 1, 2) == [latents(1), latents(2)]


async def test_sweep_keeps_a_blob_that_was_written_again(store: LatentStore, tmp_path: Path) -> None:
    await store.admit(offered())
    await purge(store, "default", Selection())
    age(tmp_path)
    [lock] = [store.lock("default", offered().entry.identity)]
    async with lock:
        sweeping = asyncio.create_task(sweep(store, GRACE))
        # As an admission does while it holds the lock.
        for key, data in zip(offered().entry.keys, offered().data.values(), strict=True):
            await store.blobs.put(key, data)
        await store.index.upsert(SPACE, offered().entry, unit(0))
    assert await sweeping == SweepResult(blobs=0, rows=0)
    assert await fetched(store, offered().entry, 1) == [latents(1)]


async def test_sweeper_continues_after_a_failed_sweep(
    store: LatentStore, fault: Interruption, tmp_path: Path
) -> None:
    await store.admit(offered())
    await purge(store, "default", Selection())
    age(tmp_path)
    fault.failing.add("delete blobs")
    sweeping = asyncio.create_task(Sweeper(store, interval_seconds=0.01, grace_seconds=GRACE).run())
    await fault.until("delete blobs", 2)
    fault.failing.clear()
    await fault.until("deleted blobs", 1)
    sweeping.cancel()
    await asyncio.wait((sweeping,))
    assert files(tmp_path) == []
