"""Verifies side data of cache entries: admission, bounds, fetch, corruption and sweep."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest
from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2
from chorus_rpc.chunks import sha256
from chorus_rpc.errors import BLOB_CORRUPT, INVALID_FIELD, NOT_FOUND, ChorusError
from hypothesis import given
from hypothesis import strategies as st

from services.cache.directory import DirectoryBlobs
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import Admission, Blob
from services.cache.index import Selection
from services.cache.store import LatentStore
from services.cache.sweeper import SweepResult, claim_if_empty, sweep
from services.cache.upload import Upload
from services.cache.usage import measure_usage, purge
from services.cache.validation import Limits
from tests.contract.samples import (
    SPACE,
    admission,
    blob_messages,
    header,
    latents,
    new_entry,
    side_data,
    side_header,
    unit,
)

BLOBS = {1: latents(1), 2: latents(2), 3: latents(3)}
LATENTS_BYTES = sum(len(data) for data in BLOBS.values())
SIDE = side_data(7)
LIMITS = Limits(prompt=200, blob=1 << 20, entry=1 << 20)
GRACE = 600.0

Messages = list[cache_pb2.AdmitRequest]


def uploaded(messages: Iterable[cache_pb2.AdmitRequest], limits: Limits = LIMITS) -> Admission:
    upload = Upload("default", limits)
    for message in messages:
        upload.add(message)
    return upload.finish(1_000)


def refused(field: str, call: Callable[[], object]) -> str:
    with pytest.raises(ChorusError) as failed:
        call()
    assert failed.value.reason == INVALID_FIELD
    assert [violation.field for violation in failed.value.violations] == [field]
    return failed.value.message


@given(st.permutations([1, 2, 3, None]), st.integers(1, 400))
def test_side_data_may_be_sent_between_steps(order: list[int | None], chunk_bytes: int) -> None:
    [offer] = list(admission(new_entry(), BLOBS, side=SIDE))[:1]
    messages = [offer]
    for step in order:
        announced = side_header(SIDE) if step is None else header(step, BLOBS[step])
        messages += blob_messages(announced, SIDE if step is None else BLOBS[step], chunk_bytes)
    found = uploaded(messages)
    assert [blob.step for blob in found.entry.blobs] == [1, 2, 3, None]
    assert found.entry.blobs[-1] == Blob(None, 0.0, len(SIDE), sha256(SIDE))
    assert found.data == {sha256(data): data for data in (*BLOBS.values(), SIDE)}
    assert found.entry.size_bytes == LATENTS_BYTES + len(SIDE)


def changed(change: Callable[[latents_pb2.BlobHeader], object]) -> Messages:
    """Returns an admission with an altered header of side data."""
    messages = list(admission(new_entry(), BLOBS, 1 << 20, side=SIDE))
    change(messages[-2].header)
    return messages


def unannounced() -> Messages:
    messages = list(admission(new_entry(), BLOBS, side=SIDE))
    messages[0].entry.side_data = False
    return messages


def instead_of_latents() -> Messages:
    [offer] = list(admission(new_entry(), {1: BLOBS[1]}))[:1]
    return [offer, *blob_messages(side_header(SIDE), SIDE)]


@pytest.mark.parametrize(
    ("field", "messages"),
    [
        pytest.param("header.kind", unannounced(), id="not announced"),
        pytest.param("header.kind", instead_of_latents(), id="instead of latents"),
        pytest.param(
            "header.kind",
            [*admission(new_entry(), BLOBS, side=SIDE), *blob_messages(side_header(SIDE), SIDE)],
            id="twice",
        ),
        pytest.param("header.kind", changed(lambda each: setattr(each, "kind", 9)), id="another kind"),
        pytest.param("header.step", changed(lambda each: each.step.SetInParent()), id="with a step"),
        pytest.param(
            "header.size_bytes", changed(lambda each: setattr(each, "size_bytes", 1 << 40)), id="huge"
        ),
        pytest.param("header.digest", changed(lambda each: setattr(each, "digest", "")), id="no digest"),
        pytest.param(
            "entry.side_data", list(admission(new_entry(), BLOBS, 1 << 20, side=SIDE))[:-2], id="none"
        ),
        pytest.param("chunk", list(admission(new_entry(), BLOBS, 10, side=SIDE))[:-1], id="cut"),
        pytest.param("chunk", list(admission(new_entry(), BLOBS, side=b"GIF89a" * 10)), id="foreign"),
    ],
)
def test_side_data_unlike_its_announcement_is_rejected(field: str, messages: Messages) -> None:
    refused(field, lambda: uploaded(messages))


def wide(size: int) -> dict[int, bytes]:
    """Returns one step of `size` bytes; their contents are checked after the bound on side data."""
    return {1: b"\0" * size}


@given(st.integers(len(SIDE) * 10 - 20, len(SIDE) * 10 + 20))
def test_side_data_is_at_most_a_tenth_of_the_latents(latents_bytes: int) -> None:
    messages = list(admission(new_entry(), wide(latents_bytes), 1 << 20, side=SIDE))
    fits = len(SIDE) * 10 <= latents_bytes
    message = refused("chunk" if fits else "header.size_bytes", lambda: uploaded(messages))
    assert fits or f"at most {latents_bytes // 10} bytes" in message


def test_bound_on_side_data_counts_the_latents_of_every_step() -> None:
    assert len(BLOBS[1]) // 10 < len(SIDE) <= LATENTS_BYTES // 10
    assert uploaded(admission(new_entry(), BLOBS, side=SIDE))
    refused("header.size_bytes", lambda: uploaded(admission(new_entry(), {1: BLOBS[1]}, side=SIDE)))


def test_bound_on_an_entry_counts_side_data() -> None:
    tight = Limits(prompt=200, blob=1 << 20, entry=LATENTS_BYTES + len(SIDE))
    assert uploaded(admission(new_entry(), BLOBS, side=SIDE), tight)
    tighter = Limits(prompt=200, blob=1 << 20, entry=LATENTS_BYTES + len(SIDE) - 1)
    refused("header.size_bytes", lambda: uploaded(admission(new_entry(), BLOBS, side=SIDE), tighter))


@pytest.mark.parametrize("tensors", [0, 1, 16, 17])
def test_side_data_holds_1_to_16_tensors(tensors: int) -> None:
    offered = new_entry()
    offered.identity.latent_shape[:] = [4, 4, 32, 32]
    blobs = {1: latents(1, offered.identity.latent_shape)}
    messages = list(admission(offered, blobs, 1 << 20, side=side_data(7, tensors)))
    if 1 <= tensors <= 16:
        assert uploaded(messages).entry.blobs[-1].step is None
    else:
        assert "1 to 16" in refused("chunk", lambda: uploaded(messages))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LatentStore]:
    index = await EmbeddedIndex.open_path(str(tmp_path / "index.db"), seconds=30)
    blobs = await DirectoryBlobs.open(tmp_path / "blobs", seconds=30, threads=4)
    store = LatentStore(index, blobs)
    await claim_if_empty(store)
    yield store
    await store.close()
    await blobs.close()
    await index.close()


def offered(prompt: str = "a red circle", side: bytes | None = SIDE) -> Admission:
    return uploaded(admission(new_entry(prompt), BLOBS, 1 << 20, side=side))


async def fetched(
    store: LatentStore, offer: Admission, *steps: int, side: bool
) -> list[tuple[int | None, bytes]]:
    entry = offer.entry
    found = store.fetch(SPACE, entry.tenant, entry.identity, entry.entry_id, steps, side_data=side)
    return [(blob.step, data) async for blob, data in found]


async def test_fetch_returns_side_data_last_and_only_on_request(store: LatentStore) -> None:
    assert await store.admit(offered())
    assert await fetched(store, offered(), 3, 1, side=True) == [(3, BLOBS[3]), (1, BLOBS[1]), (None, SIDE)]
    assert await fetched(store, offered(), 3, side=False) == [(3, BLOBS[3])]
    [hit] = await store.lookup(SPACE, "default", offered().entry.identity, unit(0), 4, -1.0)
    assert hit.entry == offered().entry


async def test_fetch_of_an_entry_without_side_data_omits_it(store: LatentStore) -> None:
    await store.admit(offered(side=None))
    assert await fetched(store, offered(), 2, side=True) == [(2, BLOBS[2])]
    # The same request yields the same entry, which stays unchanged.
    assert not await store.admit(offered())
    assert await fetched(store, offered(), 2, side=True) == [(2, BLOBS[2])]


@pytest.mark.parametrize("damage", ["missing", "altered"])
async def test_corrupt_side_data_deletes_the_row(store: LatentStore, tmp_path: Path, damage: str) -> None:
    await store.admit(offered())
    path = tmp_path / "blobs" / offered().entry.keys[-1]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(SIDE[:-1] + b"?")
    # A fetch without side data does not notice the damage.
    assert await fetched(store, offered(), 1, side=False) == [(1, BLOBS[1])]
    with pytest.raises(ChorusError, match=f"side data of entry .* is {damage}") as failed:
        await fetched(store, offered(), 1, side=True)
    assert failed.value.reason == BLOB_CORRUPT
    assert failed.value.metadata == {"entry": offered().entry.entry_id}
    assert store.counters["default"].corrupt_blobs == 1
    with pytest.raises(ChorusError) as failed:
        await fetched(store, offered(), 1, side=False)
    assert failed.value.reason == NOT_FOUND
    assert await store.admit(offered())
    assert await fetched(store, offered(), 1, side=True) == [(1, BLOBS[1]), (None, SIDE)]


def age(root: Path) -> None:
    """Makes every blob older than the grace period."""
    for path in (root / "blobs").rglob("*.safetensors"):
        stat = path.stat()
        os.utime(path, (stat.st_atime - 2 * GRACE, stat.st_mtime - 2 * GRACE))


async def test_side_data_is_counted_purged_and_swept_with_its_entry(
    store: LatentStore, tmp_path: Path
) -> None:
    await store.admit(offered())
    age(tmp_path)
    assert await sweep(store, GRACE) == SweepResult(blobs=0, rows=0)
    expected = LATENTS_BYTES + len(SIDE)
    assert (await measure_usage(store.index, "default")).size_bytes == expected
    assert (await purge(store, "default", Selection())).size_bytes == expected
    assert await sweep(store, GRACE) == SweepResult(blobs=4, rows=0)


async def test_sweep_deletes_a_row_without_its_side_data(store: LatentStore, tmp_path: Path) -> None:
    await store.admit(offered())
    (tmp_path / "blobs" / offered().entry.keys[-1]).unlink()
    age(tmp_path)
    assert (await sweep(store, GRACE)).rows == 1
    assert (await measure_usage(store.index, "default")).entries == 0
