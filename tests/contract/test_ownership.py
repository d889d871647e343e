"""Verifies the id of an index and the claim on an object store, for every implementation of both."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest

from services.cache.blobs import Blobs
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import make_blob_key
from services.cache.ownership import MARKER_ROOT, Ownership, StoreClaim
from tests.contract.conftest import OpenBlobs, OpenIndex
from tests.contract.samples import digest

pytestmark = pytest.mark.fault("store-ownership")

KEY = make_blob_key("default", digest("identity"), digest("blob"))
MINE, THEIRS = uuid.uuid4().hex, uuid.uuid4().hex


async def list_keys(blobs: Blobs, folder: str = MARKER_ROOT) -> list[str]:
    return [blob.key async for page in blobs.list(folder) for blob in page]


async def test_index_id_is_the_same_for_every_process_and_after_a_restart(open_index: OpenIndex) -> None:
    # Milvus Lite is opened by one process; a server, by several at the same time.
    opened = [await open_index(), *await asyncio.gather(*(open_index() for _ in range(3)))]
    ids = {index.index_id for index in opened}
    assert len(ids) == 1
    for index in opened:
        await index.close()
    assert {(await open_index()).index_id} == ids
    # The collection that keeps the id is no space.
    assert "chorus_index" not in await (await open_index()).spaces()


async def test_every_index_has_an_id_of_its_own(tmp_path: Path) -> None:
    ids = set()
    for name in ("first.db", "second.db"):
        index = await EmbeddedIndex.open_path(str(tmp_path / name), seconds=30)
        ids.add(index.index_id)
        await index.close()
    assert len(ids) == 2
    assert all(len(index_id) == 32 for index_id in ids)


async def test_store_is_claimed_once_and_stays_claimed(open_blobs: OpenBlobs) -> None:
    first = await open_blobs()
    claim = StoreClaim(first, MINE)
    assert (claim.ownership, await claim.check()) == (Ownership.UNCLAIMED, Ownership.UNCLAIMED)
    assert await claim.claim() is Ownership.OWNED
    await first.close()
    again = await open_blobs()
    assert await StoreClaim(again, MINE).check() is Ownership.OWNED
    foreign = StoreClaim(again, THEIRS)
    assert await foreign.check() is Ownership.FOREIGN
    assert foreign.owners == (MINE,)
    await again.close()


async def test_late_claim_leaves_the_owner_in_place(blobs: Blobs) -> None:
    owner, late = StoreClaim(blobs, MINE), StoreClaim(blobs, THEIRS)
    assert await owner.claim() is Ownership.OWNED
    # As if it had found no marker just before.
    assert await late.claim() is Ownership.FOREIGN
    assert await owner.check() is Ownership.OWNED
    assert len(await list_keys(blobs)) == 1


async def test_concurrent_claims_never_yield_two_owners(blobs: Blobs) -> None:
    for _ in range(5):
        claims = [StoreClaim(blobs, uuid.uuid4().hex) for _ in range(3)]
        await asyncio.gather(*(claim.claim() for claim in claims))
        states = [await claim.check() for claim in claims]
        # None if every one saw another's marker in time to withdraw its own; the next sweep tries again.
        assert states.count(Ownership.OWNED) <= 1
        assert len(set(states)) == 1 or states.count(Ownership.OWNED) == 1
        await blobs.delete(await list_keys(blobs))


async def test_adoption_replaces_every_other_owner(blobs: Blobs) -> None:
    claims = [StoreClaim(blobs, uuid.uuid4().hex) for _ in range(3)]
    for claim in claims:
        await claim.adopt()
    assert [await claim.check() for claim in claims] == [Ownership.FOREIGN] * 2 + [Ownership.OWNED]
    assert [await claim.is_marked() for claim in claims] == [False, False, True]
    assert len(await list_keys(blobs)) == 1


async def test_listing_of_markers_reads_no_blobs(blobs: Blobs) -> None:
    await blobs.put(KEY, b"x")
    assert await list_keys(blobs) == []
    await StoreClaim(blobs, MINE).claim()
    assert await list_keys(blobs) == [f"{MARKER_ROOT}/{MINE}.json"]
    assert KEY in await list_keys(blobs, "v1")
