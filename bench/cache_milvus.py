"""Lookups on a Milvus server, compared with bare pymilvus: one part of `bench.cache`.

Both search the same collection, with the same filter, consistency level and output fields.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from pymilvus import MilvusClient

from bench import results
from bench.cache_rows import (
    IDENTITY,
    LIMIT,
    SPACE,
    TENANT,
    divide,
    draw_vectors,
    fill,
    label_size,
    make_entry,
    time_alternately,
    to_ms,
)
from bench.results import Figure
from services.cache.filters import make_filter
from services.cache.index import Selection
from services.cache.layout import FIELDS, to_row
from services.cache.milvus import MilvusIndex

URI: Final = "CHORUS_TEST_MILVUS_URI"
SECONDS: Final = 60.0
_BATCH: Final = 1_000  # rows of one write
_CONSISTENCY: Final = "Session"  # of the cache's own lookups


async def measure_milvus(sizes: Sequence[int], requests: int) -> dict[str, Figure]:
    """Measures lookups at several numbers of entries on the server that CHORUS_TEST_MILVUS_URI names.

    Its collection is dropped at the end.

    Args:
        sizes: Numbers of entries, ascending.
        requests: Number of lookups of each kind at each size.
    """
    uri = os.environ[URI]
    space = replace(SPACE, encoder_id=f"bench {uuid.uuid4().hex}")
    vectors, queries = draw_vectors(max(sizes), 0), draw_vectors(requests, 1).tolist()
    index = await MilvusIndex.open(uri, "", seconds=SECONDS, threads=8)
    bare = MilvusClient(uri=uri, timeout=SECONDS)
    where = make_filter(TENANT, Selection(identity=IDENTITY))

    async def look_up(number: int) -> object:
        return await index.search(space.name, TENANT, IDENTITY, queries[number], LIMIT)

    async def search(number: int) -> object:
        return bare.search(
            space.name,
            data=[queries[number]],
            filter=where,
            limit=LIMIT,
            output_fields=FIELDS,
            search_params={"metric_type": "COSINE"},
            consistency_level=_CONSISTENCY,
            timeout=SECONDS,
        )

    figures: dict[str, Figure] = {}
    try:
        await fill(index, space, [make_entry(0)], vectors[:1])  # creates the collection
        filled = 1
        for size in sizes:
            for begin in range(filled, size, _BATCH):
                numbers = range(begin, min(begin + _BATCH, size))
                rows = [to_row(make_entry(i), vectors[i].tolist()) for i in numbers]
                bare.upsert(space.name, rows, timeout=SECONDS)
            filled = size
            bare.flush(space.name, timeout=SECONDS)
            for _ in range(3):
                await look_up(0)
                await search(0)
            through, direct = await time_alternately(look_up, search, requests)
            label = label_size(size)
            figures[f"lookup_ms_milvus_{label}"] = results.median(to_ms(through), "ms")
            figures[f"lookup_ms_pymilvus_{label}"] = results.median(to_ms(direct), "ms")
            figures[f"lookup_ratio_{label}"] = results.median(divide(through, direct), "x")
    finally:
        _drop(bare, space.name)
        bare.close()
        await index.close()
    return figures


def _drop(bare: Any, space: str) -> None:
    bare.drop_alias(space, timeout=SECONDS)
    for collection in bare.list_collections(timeout=SECONDS):
        if collection.startswith(space):
            bare.drop_collection(collection, timeout=SECONDS)
