"""Id of an index in Milvus, which is kept in it."""

from __future__ import annotations

import uuid
from typing import Any

from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

# Holds no rows. The name of its primary key is this prefix and the id of the index: the creation of a
# collection is atomic, and Milvus Lite keeps the names of fields but no descriptions.
_ID_COLLECTION = "chorus_index"
_ID_FIELD_PREFIX = "id_"


def read_or_create_id(milvus: MilvusClient, seconds: float) -> str:
    """Returns the id of the index. Of several processes that create it concurrently, one succeeds."""
    if not milvus.has_collection(_ID_COLLECTION, timeout=seconds):
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(
            _ID_FIELD_PREFIX + uuid.uuid4().hex, DataType.VARCHAR, is_primary=True, max_length=64
        )
        # A server requires a vector field of at least two dimensions.
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
        try:
            milvus.create_collection(_ID_COLLECTION, schema=schema, timeout=seconds)
        except MilvusException:
            if not milvus.has_collection(_ID_COLLECTION, timeout=seconds):
                raise
    described: Any = milvus.describe_collection(_ID_COLLECTION, timeout=seconds)
    [name] = [field["name"] for field in described["fields"] if field["name"].startswith(_ID_FIELD_PREFIX)]
    return str(name.removeprefix(_ID_FIELD_PREFIX))
