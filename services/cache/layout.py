"""Layout of a collection: its columns, the conversion of rows, and the migration of earlier layouts.

A space is a collection `<space>_v2` behind the alias `<space>`. Version 1 lacks the columns from
`size_bytes` on. A collection of version 1 is copied, then the alias moves, then it is dropped; a process that
ends in between leaves it in place, and the next one copies it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from chorus_rpc.limits import MAX_ID_CHARACTERS, MAX_PROMPT_BYTES
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from services.cache.entries import Blob, Entry, Uses
from services.runtime.logs import get_logger

log = get_logger("cache.layout")

PREFIX: Final = "chorus_"
LATEST: Final = "_v2"
FORMER: Final = "_v1"
_PAGE: Final = 500

# Column and type; lengths are bytes on a server.
_FORMER_COLUMNS: Final[tuple[tuple[str, Any, dict[str, int]], ...]] = (
    ("tenant", DataType.VARCHAR, {"max_length": 63}),
    ("identity", DataType.VARCHAR, {"max_length": 64}),
    ("model_id", DataType.VARCHAR, {"max_length": MAX_ID_CHARACTERS}),
    ("prompt", DataType.VARCHAR, {"max_length": MAX_PROMPT_BYTES}),
    ("prompt_hash", DataType.VARCHAR, {"max_length": 64}),
    ("blobs", DataType.JSON, {}),
    ("cost_seconds", DataType.DOUBLE, {}),
    ("created_ms", DataType.INT64, {}),
    ("traceparent", DataType.VARCHAR, {"max_length": 64}),
    ("generation_id", DataType.VARCHAR, {"max_length": MAX_ID_CHARACTERS}),
)
_COLUMNS: Final = (
    *_FORMER_COLUMNS,
    ("size_bytes", DataType.INT64, {}),
    ("expires_ms", DataType.INT64, {}),
    ("hits", DataType.INT64, {}),
    ("used_ms", DataType.INT64, {}),
    ("saved_seconds", DataType.DOUBLE, {}),
)
FIELDS: Final = ["entry_id", *(name for name, _, _ in _COLUMNS)]
_FORMER_FIELDS: Final = ["entry_id", *(name for name, _, _ in _FORMER_COLUMNS)]
# Fields of an entry with a column of the same name.
_PLAIN: Final = [name for name, _, _ in _FORMER_COLUMNS if name != "blobs"] + ["expires_ms"]
# Fields that the JSON column holds beside the blobs. A seed is text, because a JSON number has 53 bits.
_IN_JSON: Final = ("similarity", "from_hit", "seed_drawn", "pinned")


def to_row(entry: Entry, vector: Sequence[float]) -> dict[str, Any]:
    """Returns an entry and its vector as a row of the latest layout."""
    details: dict[str, Any] = {name: getattr(entry, name) for name in _IN_JSON}
    details["blobs"] = [vars(blob) for blob in entry.blobs]
    details["seed"] = None if entry.seed is None else str(entry.seed)
    return {
        "entry_id": entry.entry_id,
        **{name: getattr(entry, name) for name in _PLAIN},
        **entry.uses._asdict(),
        "size_bytes": entry.size_bytes,
        "blobs": details,
        "vector": list(vector),
    }


def to_entry(row: Mapping[str, Any]) -> Entry:
    """Inverts `to_row`, for rows of any layout."""
    details = row["blobs"]
    seed = details.get("seed")
    return Entry(
        entry_id=row["entry_id"],
        **{name: row[name] for name in _PLAIN if name in row},
        **{name: details[name] for name in _IN_JSON if name in details},
        blobs=tuple(Blob(**blob) for blob in details["blobs"]),
        seed=None if seed is None else int(seed),
        uses=Uses(row.get("hits", 0), row.get("saved_seconds", 0.0), row.get("used_ms", 0)),
    )


def find_spaces(collections: Sequence[str]) -> list[str]:
    """Returns the spaces among the names of collections, of any layout."""
    names = {
        name.removesuffix(suffix)
        for name in collections
        for suffix in (LATEST, FORMER)
        if name.startswith(PREFIX) and name.endswith(suffix)
    }
    return sorted(names)


def create_collection(milvus: MilvusClient, space: str, dimension: int, seconds: float) -> None:
    """Creates the collection of a space in the latest layout, unless it exists."""
    collection = space + LATEST
    if milvus.has_collection(collection, timeout=seconds):
        return
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("entry_id", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
    for name, kind, bounds in _COLUMNS:
        schema.add_field(name, kind, **bounds)
    try:
        milvus.create_collection(collection, schema=schema, timeout=seconds)
    except MilvusException:
        if not milvus.has_collection(collection, timeout=seconds):  # otherwise another process created it
            raise


def load_collection(milvus: MilvusClient, space: str, seconds: float) -> bool:
    """Makes the collection of a space searchable and current, completing what another process began.

    Returns False if the space has no collection of any layout.
    """
    former, latest = space + FORMER, space + LATEST
    to_migrate = milvus.has_collection(former, timeout=seconds)
    if to_migrate:
        _load(milvus, former, seconds)
        create_collection(milvus, space, _read_dimension(milvus, former, seconds), seconds)
    elif not milvus.has_collection(latest, timeout=seconds):
        return False
    _load(milvus, latest, seconds)
    if to_migrate:
        rows = _copy_rows(milvus, former, latest, seconds)
        log.info("index migrated", space=space, rows=rows)
    _point_alias(milvus, space, latest, seconds)
    if to_migrate:
        milvus.drop_collection(former, timeout=seconds)
    return True


def _load(milvus: MilvusClient, collection: str, seconds: float) -> None:
    if not milvus.list_indexes(collection, timeout=seconds):
        params = milvus.prepare_index_params()
        # Exact search: at the size of a cache, the search is not the bottleneck.
        params.add_index("vector", index_type="FLAT", metric_type="COSINE")
        milvus.create_index(collection, params, timeout=seconds)
    milvus.load_collection(collection, timeout=seconds)


def _read_dimension(milvus: MilvusClient, collection: str, seconds: float) -> int:
    fields = milvus.describe_collection(collection, timeout=seconds)["fields"]
    [vector] = [field for field in fields if field["name"] == "vector"]
    return int(vector["params"]["dim"])


def _copy_rows(milvus: MilvusClient, source: str, target: str, seconds: float) -> int:
    pages = milvus.query_iterator(
        source,
        batch_size=_PAGE,
        filter="",
        output_fields=[*_FORMER_FIELDS, "vector"],
        consistency_level="Strong",
        timeout=seconds,
    )
    count = 0
    try:
        while page := pages.next():
            rows = [to_row(to_entry(row), row["vector"]) for row in page]
            milvus.upsert(target, rows, timeout=seconds)
            count += len(rows)
    finally:
        pages.close()
    return count


def _point_alias(milvus: MilvusClient, space: str, collection: str, seconds: float) -> None:
    """Makes a space's alias name a collection, whether or not it exists."""
    if milvus.has_collection(space, timeout=seconds):
        milvus.alter_alias(collection, space, timeout=seconds)
        return
    try:
        milvus.create_alias(collection, space, timeout=seconds)
    except MilvusException:
        if not milvus.has_collection(space, timeout=seconds):
            raise
