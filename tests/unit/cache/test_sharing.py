"""Verifies that a tenant reuses another's entries where the settings say so, and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from chorus_rpc.errors import NOT_FOUND, ChorusError

from services.cache.__main__ import read_shares
from services.cache.directory import DirectoryBlobs
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import Admission
from services.cache.index import Selection
from services.cache.store import LatentStore
from services.cache.survey import survey
from services.cache.sweeper import claim_if_empty
from services.cache.upload import Upload
from services.cache.usage import measure_usage, purge
from services.cache.validation import Limits
from tests.contract.samples import SPACE, admission, latents, new_entry, unit

LIMITS = Limits(prompt=200, blob=1 << 20, entry=1 << 20)
SHARES = ("acme=studio", "acme=archive", "beta=acme")


def offered(tenant: str, number: int) -> Admission:
    upload = Upload(tenant, LIMITS)
    for message in admission(new_entry(f"{tenant} {number}", vector=number), {1: latents(number)}, 1 << 20):
        upload.add(message)
    return upload.finish(1_000)


IDENTITY = offered("acme", 0).entry.identity


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LatentStore]:
    index = await EmbeddedIndex.open_path(str(tmp_path / "index.db"), seconds=30)
    blobs = await DirectoryBlobs.open(tmp_path / "blobs", seconds=30, threads=4)
    store = LatentStore(index, blobs, shares=read_shares(SHARES))
    await claim_if_empty(store)
    for tenant in ("acme", "studio", "archive", "beta"):
        for number in range(3):
            await store.admit(offered(tenant, number))
    yield store
    await store.close()
    await blobs.close()
    await index.close()


async def prompts(store: LatentStore, tenant: str, limit: int = 16, vector: int = 0) -> list[str]:
    hits = await store.lookup(SPACE, tenant, IDENTITY, unit(vector), limit, -1.0)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    return [hit.entry.prompt for hit in hits]


async def fetch(store: LatentStore, tenant: str, owner: str, number: int) -> list[bytes]:
    entry = offered(owner, number).entry
    blobs = store.fetch(SPACE, tenant, IDENTITY, entry.entry_id, [1], total_steps=4)
    async with aclosing(blobs):
        return [data async for _, data in blobs]


async def test_reader_finds_the_nearest_of_its_own_and_the_shared_entries(store: LatentStore) -> None:
    found = await prompts(store, "acme")
    owners = ("acme", "studio", "archive")
    assert sorted(found) == sorted(f"{owner} {number}" for owner in owners for number in range(3))
    assert set(await prompts(store, "acme", limit=3, vector=2)) == {"acme 2", "studio 2", "archive 2"}
    for owner in owners:
        assert await fetch(store, "acme", owner, 1) == [latents(1)]


@pytest.mark.parametrize(
    ("tenant", "owners"),
    [("studio", ["studio"]), ("archive", ["archive"]), ("beta", ["beta", "acme"]), ("other", [])],
)
async def test_sharing_is_one_way_and_not_passed_on(
    store: LatentStore, tenant: str, owners: list[str]
) -> None:
    assert {prompt.split()[0] for prompt in await prompts(store, tenant)} == set(owners)
    for owner in {"acme", "studio", "archive", "beta"} - set(owners):
        with pytest.raises(ChorusError) as refused:
            await fetch(store, tenant, owner, 0)
        assert refused.value.reason == NOT_FOUND


async def test_use_counts_for_the_owner_and_reader_changes_nothing(store: LatentStore) -> None:
    await fetch(store, "acme", "studio", 0)
    assert (await survey(store.ledger, "studio", 0)).uses.hits == 1
    assert (await survey(store.ledger, "acme", 0)).uses.hits == 0
    assert store.counters["acme"].fetches == 1
    assert (await purge(store, "acme", Selection())).entries == 3
    assert (await measure_usage(store.index, "studio")).entries == 3
    assert await store.find(SPACE, "acme", offered("studio", 0).entry.entry_id) is None


async def test_damaged_shared_entry_is_dropped_for_all(store: LatentStore, tmp_path: Path) -> None:
    [path] = (tmp_path / "blobs").rglob(f"studio/*/{offered('studio', 1).entry.blobs[0].digest}.safetensors")
    path.write_bytes(b"altered")
    with pytest.raises(ChorusError, match="the entry was dropped"):
        await fetch(store, "acme", "studio", 1)
    assert "studio 1" not in await prompts(store, "studio")
    assert "acme 1" in await prompts(store, "acme")
