"""Verifies a store whose index and object store fail at random: nothing wrong is served, and it recovers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from random import Random

import pytest
from chorus_rpc.errors import BLOB_CORRUPT, DEPENDENCY_UNAVAILABLE, NOT_FOUND, WRONG_STATE, ChorusError

from services.cache.directory import DirectoryBlobs
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import Admission, Entry
from services.cache.eviction.ledger import EntryKey
from services.cache.hot import HotBlobs
from services.cache.index import Selection
from services.cache.listing import list_entries
from services.cache.room import Capacity
from services.cache.store import LatentStore, now_ms
from services.cache.sweeper import claim_if_empty, maintain, sweep
from services.cache.upload import Upload
from services.cache.usage import purge
from services.cache.validation import Limits
from services.cache.verification import verify
from tests.contract.samples import SPACE, admission, latents, new_entry, unit
from tests.integration.cache.faulty import Faults, FaultyBlobs, FaultyIndex

TENANT = "default"
LIMITS = Limits(prompt=200, blob=1 << 20, entry=1 << 20)
STEPS = (1, 2)
PROMPTS = 14
ENTRY_BYTES = 2 * len(latents(0))
CAPACITY = Capacity(8 * ENTRY_BYTES, 8 * ENTRY_BYTES, low_water=0.8)
ROUNDS, AT_ONCE = 150, 3
NO_GRACE = -1.0
EXPECTED = {BLOB_CORRUPT, DEPENDENCY_UNAVAILABLE, NOT_FOUND, WRONG_STATE}


def contents(number: int) -> dict[int, bytes]:
    """Returns the blobs of a prompt; each pair of prompts shares its first blob."""
    return {1: latents(1_000 + number // 2), 2: latents(number)}


def offered(number: int, *, pinned: bool = False) -> Admission:
    upload = Upload(TENANT, LIMITS)
    sent = new_entry(f"prompt {number}", vector=number)
    sent.retention.pinned = pinned
    for message in admission(sent, contents(number), 1 << 20):
        upload.add(message)
    return upload.finish(now_ms())


IDENTITY = offered(0).entry.identity


async def fetch(store: LatentStore, number: int) -> None:
    """Fetches an entry; asserts that every blob that is yielded is right."""
    entry_id = offered(number).entry.entry_id
    blobs = store.fetch(SPACE, TENANT, IDENTITY, entry_id, STEPS, total_steps=4)
    async with aclosing(blobs):
        async for blob, data in blobs:
            assert blob.step is not None
            assert data == contents(number)[blob.step]


async def look_up(store: LatentStore, number: int) -> None:
    for hit in await store.lookup(SPACE, TENANT, IDENTITY, unit(number), 16, -1.0):
        assert hit.entry.prompt.startswith("prompt ")


async def operate(store: LatentStore, random: Random) -> None:
    """Runs one call; it may fail, but only with an error that its caller understands."""
    number = random.randrange(PROMPTS)
    entry_id = offered(number).entry.entry_id
    try:
        match random.randrange(12):
            case 0 | 1 | 2:
                await store.admit(offered(number, pinned=random.random() < 0.1))
            case 3 | 4 | 5:
                await fetch(store, number)
            case 6:
                await look_up(store, number)
            case 7:
                await purge(store, TENANT, Selection(entry_id=entry_id))
            case 8:
                [_ async for _ in verify(store, TENANT, "", repair=random.random() < 0.5)]
            case 9:
                await list_entries(store, TENANT, "used", 5, "")
            case 10:
                await maintain(store)
            case _:
                await sweep(store, NO_GRACE)
    except ChorusError as error:
        if error.reason not in EXPECTED:
            raise


async def list_rows(store: LatentStore) -> list[Entry]:
    return [
        entry
        for space in await store.index.spaces()
        async for page in store.index.every_entry(space)
        for entry in page
    ]


async def check_recovered(store: LatentStore, root: Path) -> None:
    """Asserts that ledger, rows and files agree once nothing fails, and that every entry is right."""
    await maintain(store)
    for _ in range(3):  # one deletes rows without blobs, the next the blobs that only they named
        await sweep(store, NO_GRACE)
    rows = await list_rows(store)
    for entry in rows:
        await fetch(store, int(entry.prompt.removeprefix("prompt ")))
    files = {path.relative_to(root).as_posix() for path in (root / "v1").rglob("*") if path.is_file()}
    assert {file for file in files if "/.owners/" not in file} == {key for each in rows for key in each.keys}
    assert set(store.ledger) == {EntryKey(SPACE.name, TENANT, each.entry_id) for each in rows}
    await store.admit(offered(PROMPTS))
    assert store.ledger.total_bytes <= CAPACITY.total


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[tuple[EmbeddedIndex, DirectoryBlobs]]:
    index = await EmbeddedIndex.open_path(str(tmp_path / "index.db"), seconds=30)
    blobs = await DirectoryBlobs.open(tmp_path / "blobs", seconds=30, threads=4)
    yield index, blobs
    await blobs.close()
    await index.close()


@pytest.mark.parametrize("seed", range(8))
async def test_faults_of_the_stores_serve_nothing_wrong_and_leave_nothing_behind(
    stores: tuple[EmbeddedIndex, DirectoryBlobs], tmp_path: Path, seed: int
) -> None:
    faults, random = Faults(seed), Random(seed)
    blobs = FaultyBlobs(stores[1], faults)
    store = LatentStore(
        FaultyIndex(stores[0], faults), HotBlobs(blobs, 3 * ENTRY_BYTES) if seed % 2 else blobs, CAPACITY
    )
    await claim_if_empty(store)
    faults.active = True
    for _ in range(ROUNDS):
        await asyncio.gather(*(operate(store, random) for _ in range(AT_ONCE)))
        assert store.ledger.pinned_bytes(TENANT) <= store.ledger.total_bytes
    faults.active = False
    await check_recovered(store, tmp_path / "blobs")
    await store.close()
    assert faults.drawn.keys() >= {"error", "stall", "truncation", "corruption", "lost acknowledgement"}
