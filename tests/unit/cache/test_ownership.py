"""Verifies that sweeps delete only from a store that the index owns, on real indexes and directories."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from chorus_rpc.errors import BLOB_CORRUPT, DEPENDENCY_UNAVAILABLE, WRONG_STATE, ChorusError

from services.cache.directory import DirectoryBlobs
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import Admission
from services.cache.index import Selection
from services.cache.ownership import Ownership
from services.cache.store import LatentStore
from services.cache.sweeper import SweepResult, adopt, claim_if_empty, sweep
from services.cache.upload import Upload
from services.cache.usage import purge
from services.cache.validation import Limits
from tests.contract.samples import SPACE, admission, latents, new_entry, unit

pytestmark = pytest.mark.fault("store-ownership")

GRACE = 600.0
# Opens the index and the directory of these names, as a started cache does.
OpenStore = Callable[[str, str], Awaitable[LatentStore]]


@pytest.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[OpenStore]:
    async with AsyncExitStack() as resources:

        async def open_one(index_name: str, blobs_name: str) -> LatentStore:
            index = await EmbeddedIndex.open_path(str(tmp_path / f"{index_name}.db"), seconds=30)
            resources.push_async_callback(index.close)
            blobs = await DirectoryBlobs.open(tmp_path / blobs_name, seconds=30, threads=2)
            resources.push_async_callback(blobs.close)
            store = LatentStore(index, blobs)
            resources.push_async_callback(store.close)
            await claim_if_empty(store)
            return store

        yield open_one


def offered(prompt: str) -> Admission:
    upload = Upload("default", Limits(prompt=200, blob=1 << 20, entry=1 << 20))
    number = sum(prompt.encode())
    for message in admission(new_entry(prompt), {1: latents(number)}, 1 << 20):
        upload.add(message)
    return upload.finish(1_000)


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


def age(root: Path) -> None:
    for path in root.rglob("*"):
        os.utime(path, (0, path.stat().st_mtime - 2 * GRACE))


def forget_markers(root: Path) -> None:
    """Leaves the store as a version without markers did."""
    for path in (root / "v1" / ".owners").iterdir():
        path.unlink()


async def fetched(store: LatentStore, prompt: str) -> list[bytes]:
    entry = offered(prompt).entry
    return [data async for _, data in store.fetch(SPACE, "default", entry.identity, entry.entry_id, [1])]


async def test_another_index_on_the_same_store_deletes_nothing(open_store: OpenStore, tmp_path: Path) -> None:
    first = await open_store("first", "blobs")
    await first.admit(offered("one"))
    await first.admit(offered("two"))
    age(tmp_path / "blobs")
    second = await open_store("second", "blobs")
    for _ in range(2):
        assert await sweep(second, GRACE) == SweepResult(0, 0)
    assert second.claim.ownership is Ownership.FOREIGN
    assert second.claim.owners == (first.claim.index_id,)
    assert len(await fetched(first, "one")) == len(await fetched(first, "two")) == 1
    # The owner continues to sweep.
    await purge(first, "default", Selection(entry_id=offered("one").entry.entry_id))
    assert await sweep(first, GRACE) == SweepResult(blobs=1, rows=0)


async def test_foreign_store_takes_no_blobs(open_store: OpenStore, tmp_path: Path) -> None:
    await open_store("first", "blobs")
    second = await open_store("second", "blobs")
    with pytest.raises(ChorusError, match="chorus cache adopt") as failed:
        await second.admit(offered("one"))
    assert failed.value.reason == WRONG_STATE
    assert files(tmp_path) == []
    assert second.counters["default"].rejected_admissions == {WRONG_STATE: 1}


async def test_empty_store_is_not_claimed_by_an_index_with_entries(
    open_store: OpenStore, tmp_path: Path
) -> None:
    right = await open_store("index", "blobs")
    await right.admit(offered("one"))
    mistyped = await open_store("index", "blosb")
    for _ in range(2):
        # The row is older than the grace period and its blob is missing.
        assert await sweep(mistyped, GRACE) == SweepResult(0, 0)
    assert mistyped.claim.ownership is Ownership.UNCLAIMED
    with pytest.raises(ChorusError, match="was kept") as failed:
        await fetched(mistyped, "one")
    assert failed.value.reason == BLOB_CORRUPT
    hits = await right.lookup(SPACE, "default", offered("one").entry.identity, unit(0), 4, -1.0)
    assert [hit.entry.prompt for hit in hits] == ["one"]
    assert await fetched(right, "one") == list(offered("one").data.values())


async def test_store_of_a_version_without_markers_is_claimed_if_every_blob_has_its_row(
    open_store: OpenStore, tmp_path: Path
) -> None:
    before = await open_store("index", "blobs")
    await before.admit(offered("one"))
    forget_markers(tmp_path / "blobs")
    age(tmp_path / "blobs")
    store = await open_store("index", "blobs")
    unclaimed = store.claim.ownership
    # An admission does not wait for the claim.
    assert await store.admit(offered("two"))
    assert await sweep(store, GRACE) == SweepResult(0, 0)
    assert (unclaimed, store.claim.ownership) == (Ownership.UNCLAIMED, Ownership.OWNED)
    await purge(store, "default", Selection())
    age(tmp_path / "blobs")
    assert await sweep(store, GRACE) == SweepResult(blobs=2, rows=0)


@pytest.mark.parametrize("own_entry", [False, True])
async def test_unclaimed_store_with_unknown_blobs_is_kept_until_it_is_adopted(
    open_store: OpenStore, tmp_path: Path, own_entry: bool
) -> None:
    before = await open_store("first", "blobs")
    await before.admit(offered("one"))
    forget_markers(tmp_path / "blobs")
    store = await open_store("second", "blobs")
    if own_entry:
        await store.admit(offered("two"))
    age(tmp_path / "blobs")
    kept = files(tmp_path)
    for _ in range(2):
        assert await sweep(store, GRACE) == SweepResult(0, 0)
    assert (store.claim.ownership, files(tmp_path)) == (Ownership.UNCLAIMED, kept)

    size = len(next(iter(offered("one").data.values())))
    for validate_only in (True, False):
        found = await adopt(store, validate_only=validate_only)
        assert (found.previous_owners, found.orphaned_blobs, found.orphaned_bytes) == ([], 1, size)
        assert store.claim.ownership is (Ownership.UNCLAIMED if validate_only else Ownership.OWNED)
    age(tmp_path / "blobs")
    assert await sweep(store, GRACE) == SweepResult(blobs=1, rows=0)
    assert len(files(tmp_path)) == int(own_entry)


async def test_adoption_moves_a_store_to_another_index(open_store: OpenStore, tmp_path: Path) -> None:
    first = await open_store("first", "blobs")
    await first.admit(offered("one"))
    second = await open_store("second", "blobs")
    assert (await adopt(second, validate_only=True)).previous_owners == [first.claim.index_id]
    assert await first.claim.check() is Ownership.OWNED
    assert (await adopt(second, validate_only=False)).previous_owners == [first.claim.index_id]
    assert await second.admit(offered("two"))
    # The former owner no longer deletes, and no longer admits.
    age(tmp_path / "blobs")
    assert await sweep(first, GRACE) == SweepResult(0, 0)
    with pytest.raises(ChorusError):
        await first.admit(offered("three"))
    assert await sweep(second, GRACE) == SweepResult(blobs=1, rows=0)
    assert await fetched(second, "two") == list(offered("two").data.values())


async def test_another_process_of_the_adopting_index_admits_at_once(
    open_store: OpenStore, tmp_path: Path
) -> None:
    await open_store("first", "blobs")
    second, replica = await open_store("second", "blobs"), await open_store("second", "blobs")
    await adopt(second, validate_only=False)
    assert replica.claim.ownership is Ownership.FOREIGN  # as of its latest check
    assert await replica.admit(offered("one"))


async def test_sweep_stops_when_the_store_is_adopted_during_its_survey(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await open_store("first", "blobs")
    await first.admit(offered("one"))
    await purge(first, "default", Selection())
    second = await open_store("second", "blobs")
    age(tmp_path / "blobs")
    spaces = first.index.spaces

    async def adopt_meanwhile() -> list[str]:
        await adopt(second, validate_only=False)
        return await spaces()

    monkeypatch.setattr(first.index, "spaces", adopt_meanwhile)
    assert await sweep(first, GRACE) == SweepResult(0, 0)
    assert len(files(tmp_path)) == 1


async def test_sweep_fails_while_the_index_does_not_find_a_listed_space(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store("index", "blobs")
    await store.admit(offered("one"))
    age(tmp_path / "blobs")
    kept = files(tmp_path)

    async def list_a_lost_one() -> list[str]:
        return ["chorus_lost"]

    with monkeypatch.context() as patch:
        patch.setattr(store.index, "spaces", list_a_lost_one)
        with pytest.raises(ChorusError) as failed:
            await sweep(store, GRACE)
    assert failed.value.reason == DEPENDENCY_UNAVAILABLE
    assert files(tmp_path) == kept
    assert await sweep(store, GRACE) == SweepResult(0, 0)


async def test_store_that_another_index_claims_later_takes_no_blobs(
    open_store: OpenStore, tmp_path: Path
) -> None:
    first, second = await open_store("first", "blobs"), await open_store("second", "blobs")
    forget_markers(tmp_path / "blobs")
    assert await second.claim.check() is Ownership.UNCLAIMED
    await adopt(first, validate_only=False)
    with pytest.raises(ChorusError) as failed:
        await second.admit(offered("one"))
    assert failed.value.reason == WRONG_STATE
    assert files(tmp_path) == []
