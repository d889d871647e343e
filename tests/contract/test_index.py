"""Verifies the port of the vector index for every implementation."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import uuid
from pathlib import Path

import numpy as np
import pytest
from chorus_rpc.errors import DEPENDENCY_UNAVAILABLE, ChorusError
from milvus_lite.adapter.grpc.server import start_server_in_thread

from services.cache.entries import Blob, Entry, Space, Uses
from services.cache.filters import make_filter
from services.cache.index import Index, Selection
from services.cache.milvus import MilvusIndex
from services.contract.identity import identity_digest
from tests.contract.conftest import OpenIndex
from tests.contract.samples import DIMENSION, SPACE, digest, entry, identity, unit
from tests.processes import free_port

IDENTITY = identity_digest(identity())
INJECTIONS = [
    '" or tenant != "',
    'x" or "a" == "a',
    "x' or 'a' == 'a",
    'default" or entry_id != "',
    "x\\",
    'x\\" or tenant like "%',
    "",
    "a b",
    "ü",
    "x\n",
]


async def found(index: Index, tenant: str, selection: Selection | None = None) -> list[Entry]:
    pages = [page async for page in index.select(SPACE.name, tenant, selection or Selection())]
    return sorted(itertools.chain(*pages), key=lambda each: each.created_ms)


async def test_next_search_finds_an_upserted_entry(index: Index, tenant: str) -> None:
    for i in range(5):
        kept = entry(f"prompt {i}", tenant=tenant)
        await index.upsert(SPACE, kept, unit(i))
        hits = await index.search(SPACE.name, tenant, IDENTITY, unit(i), 1)
        assert [hit.entry for hit in hits] == [kept]
        assert hits[0].score == pytest.approx(1.0, abs=1e-5)
        assert await index.get(SPACE.name, tenant, kept.entry_id) == kept


async def test_seed_of_64_bits_survives_the_index(index: Index, tenant: str) -> None:
    kept = entry("prompt", tenant=tenant, seed=2**64 - 1)
    await index.upsert(SPACE, kept, unit(0))
    assert await index.get(SPACE.name, tenant, kept.entry_id) == kept


async def test_search_orders_by_cosine(index: Index, tenant: str) -> None:
    vectors = {f"prompt {i}": unit(i) for i in range(20)}
    for prompt, vector in vectors.items():
        await index.upsert(SPACE, entry(prompt, tenant=tenant), vector)
    query = unit(99)
    cosines = {
        prompt: sum(a * b for a, b in zip(query, vector, strict=True)) for prompt, vector in vectors.items()
    }
    hits = await index.search(SPACE.name, tenant, IDENTITY, query, 6)
    assert [hit.entry.prompt for hit in hits] == sorted(cosines, key=cosines.__getitem__, reverse=True)[:6]
    for hit in hits:
        assert hit.score == pytest.approx(cosines[hit.entry.prompt], abs=1e-5)


async def test_upsert_of_the_same_entry_keeps_one_row(index: Index, tenant: str) -> None:
    first = entry(tenant=tenant)
    later = dataclasses.replace(first, cost_seconds=9.0)
    for each in (first, first, later):
        await index.upsert(SPACE, each, unit(1))
    assert await found(index, tenant) == [later]
    assert len(await index.search(SPACE.name, tenant, IDENTITY, unit(1), 16)) == 1


async def test_next_search_finds_no_deleted_entry(index: Index, tenant: str) -> None:
    every = [entry(f"prompt {i}", tenant=tenant) for i in range(4)]
    for each in every:
        await index.upsert(SPACE, each, unit(1))
    while every:
        await index.delete(SPACE.name, tenant, [every.pop().entry_id])
        hits = await index.search(SPACE.name, tenant, IDENTITY, unit(1), 16)
        assert {hit.entry.entry_id for hit in hits} == {each.entry_id for each in every}


async def test_row_survives_delete_upsert_and_reopening(open_index: OpenIndex, tenant: str) -> None:
    index = await open_index()
    kept, dropped = entry("kept", tenant=tenant), entry("dropped", tenant=tenant)
    for each in (kept, dropped):
        await index.upsert(SPACE, each, unit(1))
    await index.delete(SPACE.name, tenant, [kept.entry_id, dropped.entry_id])
    await index.upsert(SPACE, kept, unit(1))
    await index.close()
    again = await open_index()
    assert [hit.entry for hit in await again.search(SPACE.name, tenant, IDENTITY, unit(1), 16)] == [kept]
    assert await found(again, tenant) == [kept]
    assert SPACE.name in await again.spaces()


async def test_vectors_are_read_by_id(open_index: OpenIndex, tenant: str) -> None:
    index = await open_index()
    assert await index.read_vectors("chorus_never_written", tenant, ["0" * 64]) == {}
    kept = [entry(f"prompt {i}", tenant=tenant) for i in range(120)]
    for i, each in enumerate(kept):
        await index.upsert(SPACE, each, unit(i))
    theirs = entry(tenant=f"{tenant}-other")
    await index.upsert(SPACE, theirs, unit(1))
    assert await index.read_vectors(SPACE.name, tenant, []) == {}
    for again in (index, await open_index()):
        wanted = [theirs.entry_id, "0" * 64, *(each.entry_id for each in kept)]
        found = await again.read_vectors(SPACE.name, tenant, wanted)
        assert {entry_id: read for entry_id, (read, _) in found.items()} == {
            each.entry_id: each for each in kept
        }
        for i, each in enumerate(kept):
            _, vector = found[each.entry_id]
            assert vector == pytest.approx(np.array(unit(i), np.float32), abs=1e-6)
    with pytest.raises(ValueError, match="not allowed"):
        await index.read_vectors(SPACE.name, tenant, ['" or tenant != "'])
    await index.delete(SPACE.name, tenant, [kept[0].entry_id])
    found = await index.read_vectors(SPACE.name, tenant, [each.entry_id for each in kept[:2]])
    assert list(found) == [kept[1].entry_id]


async def test_tenants_are_isolated(index: Index, tenant: str) -> None:
    mine, other = tenant, f"{tenant}-other"
    theirs = entry(tenant=other)
    await index.upsert(SPACE, theirs, unit(1))
    assert await index.search(SPACE.name, mine, IDENTITY, unit(1), 16) == []
    assert await index.get(SPACE.name, mine, theirs.entry_id) is None
    assert await found(index, mine) == []
    await index.delete(SPACE.name, mine, [theirs.entry_id])
    assert await found(index, other) == [theirs]
    own = entry(tenant=mine)
    await index.upsert(SPACE, own, unit(1))
    assert [hit.entry for hit in await index.search(SPACE.name, mine, IDENTITY, unit(1), 16)] == [own]
    walked = [each async for page in index.every_entry(SPACE.name) for each in page]
    assert {each.tenant for each in walked} >= {mine, other}


async def test_search_finds_no_other_identity(index: Index, tenant: str) -> None:
    await index.upsert(SPACE, entry(tenant=tenant, model="other-model"), unit(1))
    assert await index.search(SPACE.name, tenant, IDENTITY, unit(1), 16) == []


async def test_selection_matches_every_set_field(index: Index, tenant: str) -> None:
    old = entry("old", tenant=tenant, created_ms=1_000)
    young = entry("young", tenant=tenant, created_ms=2_000)
    other = entry("other", tenant=tenant, created_ms=3_000, model="Wan-AI/Wan2.1-T2V-1.3B")
    for i, each in enumerate((old, young, other)):
        await index.upsert(SPACE, each, unit(i))
    assert await found(index, tenant) == [old, young, other]
    assert await found(index, tenant, Selection(created_before_ms=2_000)) == [old]
    assert await found(index, tenant, Selection(model_id="shapes")) == [old, young]
    assert await found(index, tenant, Selection(model_id="Wan-AI/Wan2.1-T2V-1.3B")) == [other]
    assert await found(index, tenant, Selection(entry_id=young.entry_id)) == [young]
    assert await found(index, tenant, Selection(entry_id=young.entry_id, created_before_ms=2_000)) == []


async def test_selection_of_many_pages_is_complete(index: Index, tenant: str) -> None:
    every = [entry(f"prompt {i}", tenant=tenant, created_ms=i) for i in range(1100)]
    for each in every:
        await index.upsert(SPACE, each, unit(1))
    assert await found(index, tenant) == every
    await index.delete(SPACE.name, tenant, [each.entry_id for each in every[:500]])
    assert await found(index, tenant) == every[500:]


@pytest.mark.parametrize(
    "prompt",
    [
        "ein roter Kreis, größer als zuvor — 红色的圆 🟥",
        "quotes \" ' ` and \\ back \\n slashes",
        "line\nbreak\ttab \x00 nul",
        '{"json": [1, 2]} || tenant == "x"',
        "é" * 4000,
        "x" * 8192,
    ],
    ids=["unicode", "quotes", "control", "json", "8000 bytes", "8192 characters"],
)
async def test_any_prompt_is_returned_unchanged(index: Index, tenant: str, prompt: str) -> None:
    blobs = [Blob(i, 1 / (i + 1), 2**40 + i, digest(str(i))) for i in range(64)]
    blobs.append(Blob(None, 0.0, 2**40, digest("side data")))
    kept = entry(prompt, tenant=tenant, blobs=blobs)
    await index.upsert(SPACE, kept, unit(1))
    assert await index.get(SPACE.name, tenant, kept.entry_id) == kept


async def test_entries_with_and_without_side_data_are_returned_unchanged(index: Index, tenant: str) -> None:
    steps = [Blob(1, 0.9, 100, digest("x1")), Blob(2, 0.5, 100, digest("x2"))]
    plain = entry("plain", tenant=tenant, created_ms=1, blobs=steps)
    rich = entry("rich", tenant=tenant, created_ms=2, blobs=[*steps, Blob(None, 0.0, 20, digest("side"))])
    for each in (plain, rich):
        await index.upsert(SPACE, each, unit(1))
    assert await found(index, tenant) == [plain, rich]
    hits = await index.search(SPACE.name, tenant, IDENTITY, unit(1), 2)
    assert {hit.entry.prompt: hit.entry.blobs for hit in hits} == {"plain": plain.blobs, "rich": rich.blobs}
    assert (plain.size_bytes, rich.size_bytes) == (200, 220)
    assert len(set(rich.keys)) == 3


def test_blob_format_predates_side_data() -> None:
    written = dataclasses.asdict(Blob(1, 0.9, 100, digest("x")))
    assert written == {"step": 1, "sigma": 0.9, "size_bytes": 100, "digest": digest("x")}


async def test_encoders_and_dimensions_have_separate_spaces(index: Index, tenant: str) -> None:
    one, other = Space("minilm", DIMENSION), Space("MiniLM", DIMENSION)
    wide = Space("minilm", 4096)
    assert len({one.name, other.name, wide.name}) == 3
    await index.upsert(one, entry("one", tenant=tenant), unit(1))
    await index.upsert(wide, entry("wide", tenant=tenant), unit(1, 4096))
    assert await index.search(other.name, tenant, IDENTITY, unit(1), 16) == []
    [hit] = await index.search(wide.name, tenant, IDENTITY, unit(1, 4096), 16)
    assert hit.entry.prompt == "wide"


async def test_unwritten_space_is_empty(index: Index, tenant: str) -> None:
    space = Space(f"never-{uuid.uuid4().hex}", DIMENSION).name
    assert await index.search(space, tenant, IDENTITY, unit(1), 16) == []
    assert await index.get(space, tenant, digest("x")) is None
    assert [page async for page in index.select(space, tenant, Selection())] == []
    await index.delete(space, tenant, [digest("x")])
    assert space not in await index.spaces()
    with pytest.raises(ChorusError) as failed:
        [page async for page in index.every_entry(space)]
    assert failed.value.reason == DEPENDENCY_UNAVAILABLE


@pytest.mark.parametrize("text", INJECTIONS)
async def test_value_cannot_change_the_filter(index: Index, tenant: str, text: str) -> None:
    kept = entry(tenant=tenant)
    await index.upsert(SPACE, kept, unit(1))
    with pytest.raises(ValueError, match="filter"):
        await index.search(SPACE.name, text, IDENTITY, unit(1), 16)
    with pytest.raises(ValueError, match="filter"):
        await index.search(SPACE.name, tenant, text, unit(1), 16)
    with pytest.raises(ValueError, match="filter"):
        await index.get(SPACE.name, tenant, text)
    with pytest.raises(ValueError, match="filter"):
        await index.delete(SPACE.name, tenant, [kept.entry_id, text])
    with pytest.raises(ValueError, match="filter"):
        await found(index, tenant, Selection(model_id=text))
    assert await found(index, tenant) == [kept]


def test_every_filter_names_the_tenant() -> None:
    assert make_filter("a") == 'tenant == "a"'
    assert make_filter("a", Selection("e", "i", "m", 5)) == (
        'tenant == "a" and entry_id == "e" and identity == "i" and model_id == "m" and created_ms < 5'
    )
    assert make_filter("a", entry_ids=["x", "y"]) == 'tenant == "a" and entry_id in ["x", "y"]'


async def test_open_waits_for_a_missing_server() -> None:
    opening = MilvusIndex.open(f"http://127.0.0.1:{free_port()}", "", seconds=0.3, threads=1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(opening, 1.5)


async def test_lost_index_is_named(tmp_path: Path, tenant: str) -> None:
    server, database, port = start_server_in_thread(str(tmp_path / "server"))
    index = await MilvusIndex.open(f"http://127.0.0.1:{port}", "", seconds=1.0, threads=1)
    try:
        await index.upsert(SPACE, entry(tenant=tenant), unit(1))
        server.stop(grace=0).wait()
        with pytest.raises(ChorusError) as failed:
            await index.search(SPACE.name, tenant, IDENTITY, unit(1), 1)
    finally:
        await index.close()
        server.stop(grace=0)
        database.close()
    assert failed.value.reason == DEPENDENCY_UNAVAILABLE
    assert failed.value.metadata == {"service": "milvus"}
    assert failed.value.retry_after is not None


async def test_uses_add_up_and_survive_a_restart(open_index: OpenIndex, tenant: str) -> None:
    index = await open_index()
    kept = entry("used", tenant=tenant, pinned=True)
    await index.upsert(SPACE, kept, unit(1))
    await index.add_uses(SPACE.name, tenant, {kept.entry_id: Uses(1, 0.5, 10), "0" * 64: Uses(1, 1, 1)})
    await index.add_uses(SPACE.name, tenant, {kept.entry_id: Uses(2, 1.0, 5)})
    await index.add_uses(SPACE.name, "another", {kept.entry_id: Uses(9, 9, 9)})
    expected = dataclasses.replace(kept, uses=Uses(3, 1.5, 10))
    for each in (index, await open_index()):
        assert await each.get(SPACE.name, tenant, kept.entry_id) == expected
        [hit] = await each.search(SPACE.name, tenant, IDENTITY, unit(1), 4)
        assert hit.entry == expected
        assert hit.score == pytest.approx(1, abs=1e-5)
    assert await found(index, tenant) == [expected]


async def test_expired_entry_takes_no_place_among_the_nearest(index: Index, tenant: str) -> None:
    for i, expires_ms in enumerate((100, 0, 200)):
        await index.upsert(SPACE, entry(f"prompt {i}", tenant=tenant, expires_ms=expires_ms), unit(i))

    async def search(now_ms: int, limit: int = 4) -> list[str]:
        hits = await index.search(SPACE.name, tenant, IDENTITY, unit(0), limit, now_ms)
        return sorted(hit.entry.prompt for hit in hits)

    assert await search(0) == ["prompt 0", "prompt 1", "prompt 2"]
    assert await search(100) == ["prompt 1", "prompt 2"]
    assert await search(200, limit=1) == ["prompt 1"]
