"""Verifies that an index of an earlier layout is found whole after an upgrade, also after an interruption."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from pymilvus import DataType, MilvusClient

from services.cache.entries import UNUSED, Entry, Space, Uses
from services.cache.index import Index, Selection
from services.cache.milvus import MilvusIndex
from tests.contract.conftest import OpenIndex
from tests.contract.samples import DIMENSION, entry, unit

ROWS = 620  # more than a page


def former_row(kept: Entry, vector: list[float]) -> dict[str, Any]:
    """Returns a row as version 1 wrote it."""
    return {
        "entry_id": kept.entry_id,
        "vector": vector,
        "tenant": kept.tenant,
        "identity": kept.identity,
        "model_id": kept.model_id,
        "prompt": kept.prompt,
        "prompt_hash": kept.prompt_hash,
        "blobs": {"blobs": [vars(blob) for blob in kept.blobs], "seed": str(kept.seed)},
        "cost_seconds": kept.cost_seconds,
        "created_ms": kept.created_ms,
        "traceparent": kept.traceparent,
        "generation_id": kept.generation_id,
    }


def write_former(milvus: MilvusClient, space: Space, rows: list[dict[str, Any]]) -> None:
    """Creates a collection of version 1 with its alias, and fills it."""
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("entry_id", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=space.dimension)
    for name, length in (
        ("tenant", 63),
        ("identity", 64),
        ("model_id", 128),
        ("prompt", 8192),
        ("prompt_hash", 64),
        ("traceparent", 64),
        ("generation_id", 128),
    ):
        schema.add_field(name, DataType.VARCHAR, max_length=length)
    schema.add_field("blobs", DataType.JSON)
    schema.add_field("cost_seconds", DataType.DOUBLE)
    schema.add_field("created_ms", DataType.INT64)
    milvus.create_collection(f"{space.name}_v1", schema=schema)
    milvus.create_alias(f"{space.name}_v1", space.name)
    for start in range(0, len(rows), 200):
        milvus.insert(f"{space.name}_v1", rows[start : start + 200])


async def every_entry(index: Index, space: Space, tenant: str) -> dict[str, Entry]:
    pages = [page async for page in index.select(space.name, tenant, Selection())]
    return {each.entry_id: each for page in pages for each in page}


@pytest.mark.parametrize("interrupted", [False, True], ids=["once", "after an interruption"])
async def test_rows_of_version_1_are_found_after_the_upgrade(
    open_index: OpenIndex, tenant: str, interrupted: bool
) -> None:
    space = Space(f"encoder {uuid.uuid4().hex}", DIMENSION)
    kept = [entry(f"prompt {i}", tenant=tenant, seed=2**64 - 1 - i) for i in range(ROWS)]
    rows = [former_row(each, unit(i)) for i, each in enumerate(kept)]
    before = await open_index()
    assert isinstance(before, MilvusIndex)
    if (
        interrupted
    ):  # the copy was begun: some rows are in the latest layout, the alias still names the former
        await before.upsert(space, kept[0], unit(0))
        before._milvus.drop_alias(space.name)
    write_former(before._milvus, space, rows)

    index = await open_index()
    assert space.name in await index.spaces()
    assert await every_entry(index, space, tenant) == {each.entry_id: each for each in kept}
    assert kept[0].uses == UNUSED
    hits = await index.search(space.name, tenant, kept[0].identity, unit(7), 1)
    assert [hit.entry for hit in hits] == [kept[7]]
    await index.add_uses(space.name, tenant, {kept[7].entry_id: Uses(1, 2.0, 3)})
    again = await open_index()
    assert await again.get(space.name, tenant, kept[7].entry_id) == kept[7].with_uses(Uses(1, 2.0, 3))
    assert not before._milvus.has_collection(f"{space.name}_v1")
