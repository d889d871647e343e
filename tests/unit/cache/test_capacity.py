"""Verifies that the cache stays within its capacity on a real index and directory, whatever it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from chorus_rpc.errors import INVALID_FIELD, NOT_FOUND, WRONG_STATE, ChorusError

from services.cache.directory import DirectoryBlobs
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import Admission
from services.cache.index import Selection
from services.cache.room import UNBOUNDED, Capacity
from services.cache.store import LatentStore, now_ms
from services.cache.survey import survey
from services.cache.sweeper import claim_if_empty, maintain
from services.cache.upload import Upload
from services.cache.usage import purge
from services.cache.validation import Limits
from tests.contract.samples import SPACE, admission, latents, new_entry, unit

LIMITS = Limits(prompt=200, blob=1 << 20, entry=1 << 20)
ENTRY_BYTES = 2 * len(latents(0))
TEN = Capacity(10 * ENTRY_BYTES, 10 * ENTRY_BYTES, low_water=0.8)

OpenStore = Callable[[Capacity], Awaitable[LatentStore]]


def offered(
    number: int,
    tenant: str = "default",
    cost: float = 1.25,
    lifetime: float = 0,
    *,
    own_lifetime: int = 0,
    pinned: bool = False,
) -> Admission:
    upload = Upload(tenant, LIMITS)
    sent = new_entry(f"prompt {number}", vector=number)
    sent.cost_seconds = cost
    if own_lifetime:
        sent.retention.lifetime.seconds = own_lifetime
    sent.retention.pinned = pinned
    for message in admission(sent, {1: latents(2 * number), 2: latents(2 * number + 1)}, 1 << 20):
        upload.add(message)
    return upload.finish(now_ms(), lifetime)


@pytest.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens a store on the same index and directory at every call, after closing the one before."""
    opened: list[LatentStore] = []

    async def close() -> None:
        for store in opened:
            await store.close()
            await store.blobs.close()
            await store.index.close()
        opened.clear()

    async def open_one(capacity: Capacity) -> LatentStore:
        await close()
        index = await EmbeddedIndex.open_path(str(tmp_path / "index.db"), seconds=30)
        blobs = await DirectoryBlobs.open(tmp_path / "blobs", seconds=30, threads=4)
        store = LatentStore(index, blobs, capacity)
        opened.append(store)
        await store.load()
        await claim_if_empty(store)
        return store

    yield open_one
    await close()


def stored_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "blobs").rglob("*.safetensors"))


async def prompts(store: LatentStore, tenant: str = "default") -> set[str]:
    identity = offered(0).entry.identity
    hits = await store.lookup(SPACE, tenant, identity, unit(0), 16, -1.0)
    return {hit.entry.prompt for hit in hits}


async def fetch(store: LatentStore, number: int, tenant: str = "default") -> list[bytes]:
    entry = offered(number, tenant).entry
    blobs = store.fetch(SPACE, tenant, entry.identity, entry.entry_id, [1, 2], total_steps=4)
    async with aclosing(blobs):
        return [data async for _, data in blobs]


async def test_admissions_stay_within_the_capacity_and_every_row_keeps_its_blobs(
    open_store: OpenStore, tmp_path: Path
) -> None:
    store = await open_store(TEN)
    for number in range(35):
        assert await store.admit(offered(number))
        assert stored_bytes(tmp_path) <= TEN.total
        assert stored_bytes(tmp_path) == store.ledger.total_bytes
    kept = await prompts(store)
    assert 8 <= len(kept) <= 10
    for prompt in kept:
        number = int(prompt.removeprefix("prompt "))
        assert await fetch(store, number) == [latents(2 * number), latents(2 * number + 1)]
    assert store.counters["default"].evictions["tenant_capacity"] == 35 - len(kept)


async def test_concurrent_admissions_stay_within_the_capacity(open_store: OpenStore, tmp_path: Path) -> None:
    store = await open_store(TEN)
    await asyncio.gather(*(store.admit(offered(number)) for number in range(30)))
    assert 0 < stored_bytes(tmp_path) <= TEN.total
    assert stored_bytes(tmp_path) == store.ledger.total_bytes


async def test_used_and_expensive_entries_outlive_others(open_store: OpenStore) -> None:
    store = await open_store(TEN)
    await store.admit(offered(0))
    await store.admit(offered(1, cost=50.0))
    for number in range(2, 25):
        await fetch(store, 0)
        await store.admit(offered(number))
    assert {"prompt 0", "prompt 1"} <= await prompts(store)


async def test_full_tenant_loses_its_own_entries_only(open_store: OpenStore) -> None:
    store = await open_store(Capacity(20 * ENTRY_BYTES, 5 * ENTRY_BYTES))
    for number in range(3):
        await store.admit(offered(number, "small"))
    for number in range(30):
        await store.admit(offered(number, "large"))
    assert await prompts(store, "small") == {"prompt 0", "prompt 1", "prompt 2"}
    assert len(await prompts(store, "large")) <= 5


async def test_largest_tenant_makes_room_for_all(open_store: OpenStore, tmp_path: Path) -> None:
    store = await open_store(TEN)
    for number in range(9):
        await store.admit(offered(number, "large", cost=100.0))
    for number in range(4):
        await store.admit(offered(number, "small", cost=0.1))
    assert len(await prompts(store, "small")) == 4
    assert stored_bytes(tmp_path) <= TEN.total


async def test_entry_above_the_capacity_is_refused_and_nothing_is_evicted(open_store: OpenStore) -> None:
    store = await open_store(Capacity(10 * ENTRY_BYTES, ENTRY_BYTES - 1))
    with pytest.raises(ChorusError, match="CHORUS_CACHE_CAPACITY_BYTES") as caught:
        await store.admit(offered(0))
    assert caught.value.reason == INVALID_FIELD
    assert store.counters["default"].rejected_admissions == {INVALID_FIELD: 1}


async def test_admitting_an_entry_again_evicts_nothing(open_store: OpenStore) -> None:
    store = await open_store(TEN)
    for number in range(10):
        await store.admit(offered(number))
    kept = await prompts(store)
    assert not await store.admit(offered(9))
    assert await prompts(store) == kept


async def test_smaller_capacity_after_a_restart_is_reached_at_the_next_admission(
    open_store: OpenStore, tmp_path: Path
) -> None:
    store = await open_store(UNBOUNDED)
    for number in range(12):
        await store.admit(offered(number))
    store = await open_store(Capacity(4 * ENTRY_BYTES, 4 * ENTRY_BYTES))
    await store.admit(offered(20))
    assert stored_bytes(tmp_path) <= 4 * ENTRY_BYTES
    assert "prompt 20" in await prompts(store)


async def test_uses_survive_a_restart(open_store: OpenStore) -> None:
    store = await open_store(TEN)
    await store.admit(offered(0))
    await fetch(store, 0)
    await fetch(store, 0)
    store = await open_store(TEN)
    uses = (await survey(store.ledger, "default", 0)).uses
    assert uses.hits == 2
    assert uses.saved_seconds == pytest.approx(2 * 0.5 * 1.25)  # two of four steps, twice
    assert (await survey(store.ledger, "another", 0)).uses.hits == 0


async def test_expired_entry_is_not_found_and_leaves_no_blob(open_store: OpenStore, tmp_path: Path) -> None:
    store = await open_store(TEN)
    past = replace(offered(0), entry=replace(offered(0).entry, expires_ms=now_ms() - 1))
    await store.admit(past)
    await store.admit(offered(1, lifetime=3600))
    expired = past.entry
    assert await prompts(store) == {"prompt 1"}
    assert await store.find(SPACE, "default", expired.entry_id) is None
    with pytest.raises(ChorusError) as caught:
        await fetch(store, 0)
    assert caught.value.reason == NOT_FOUND
    await maintain(store)
    assert stored_bytes(tmp_path) == ENTRY_BYTES
    assert store.counters["default"].evictions == {"expired": 1}
    assert await store.admit(offered(0)), "the same request is admitted anew"


async def test_entry_is_not_evicted_while_it_is_read(open_store: OpenStore) -> None:
    store = await open_store(Capacity(2 * ENTRY_BYTES, 2 * ENTRY_BYTES, low_water=1.0))
    await store.admit(offered(0, cost=0.1))
    await store.admit(offered(1))
    entry = offered(0).entry
    reading = store.fetch(SPACE, "default", entry.identity, entry.entry_id, [1, 2])
    async with aclosing(reading):
        _, first = await anext(reading)
        await store.admit(offered(2))
        _, second = await anext(reading)
    assert (first, second) == (latents(0), latents(1))
    assert await prompts(store) == {"prompt 0", "prompt 2"}


@pytest.mark.parametrize(
    ("setting", "own", "expected"), [(0, 0, 0), (60, 0, 60), (0, 7, 7), (60, 7, 7), (60, 90, 60)]
)
def test_entry_expires_at_the_shorter_of_two_lifetimes(setting: float, own: int, expected: int) -> None:
    entry = offered(0, lifetime=setting, own_lifetime=own).entry
    assert entry.expires_ms == (entry.created_ms + 1_000 * expected if expected else 0)


async def test_pinned_entries_outlive_others_also_after_a_restart(open_store: OpenStore) -> None:
    store = await open_store(TEN)
    for number in range(5):
        await store.admit(offered(number, pinned=True))
    pinned = {f"prompt {number}" for number in range(5)}
    for number in range(5, 30):
        await store.admit(offered(number, cost=100.0))
        assert pinned <= await prompts(store)
    store = await open_store(TEN)
    for number in range(30, 40):
        await store.admit(offered(number, cost=100.0))
    assert pinned <= await prompts(store)
    assert store.ledger.pinned_bytes("default") == 5 * ENTRY_BYTES
    await purge(store, "default", Selection(entry_id=offered(0).entry.entry_id))
    assert store.ledger.pinned_bytes("default") == 4 * ENTRY_BYTES


async def test_pinned_bytes_of_a_tenant_are_bounded_and_the_error_says_how(open_store: OpenStore) -> None:
    store = await open_store(TEN)
    for number in range(5):
        await store.admit(offered(number, pinned=True))
    await store.admit(offered(5))
    before = await prompts(store)
    for further in (6, 5):  # one more entry, and one that exists and is not pinned
        with pytest.raises(ChorusError, match=r"pinned.*chorus cache purge --entry") as refused:
            await store.admit(offered(further, pinned=True))
        assert refused.value.reason == WRONG_STATE
        assert await prompts(store) == before
    assert await store.admit(offered(7, tenant="another", pinned=True))


async def test_concurrent_admissions_of_pinned_entries_stay_within_their_bound(open_store: OpenStore) -> None:
    store = await open_store(TEN)
    outcomes = await asyncio.gather(
        *(store.admit(offered(number, pinned=True)) for number in range(9)), return_exceptions=True
    )
    assert sum(each is True for each in outcomes) == 5
    assert store.ledger.pinned_bytes("default") == 5 * ENTRY_BYTES


async def test_pinned_entry_still_expires(open_store: OpenStore) -> None:
    store = await open_store(TEN)
    pinned = offered(0, pinned=True)
    await store.admit(replace(pinned, entry=replace(pinned.entry, expires_ms=1)))
    assert await prompts(store) == set()
    await maintain(store)
    assert len(store.ledger) == 0


async def test_other_replica_learns_that_an_entry_was_pinned_since(open_store: OpenStore) -> None:
    store = await open_store(TEN)
    await store.admit(offered(0))
    other = LatentStore(store.index, store.blobs, TEN)
    await other.load()
    await store.admit(offered(0, pinned=True))
    assert other.ledger.pinned_bytes("default") == 0
    await maintain(other)
    assert other.ledger.pinned_bytes("default") == ENTRY_BYTES
