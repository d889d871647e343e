"""Ownership of the object store: which index may delete from it.

A sweep deletes the blobs that no row of its index names. That is right only if the store belongs to that
index: with another index, an empty one for instance, it would delete everything. So a store carries a marker,
an object that is named by the id of the index, and a cache deletes only from a store whose single marker is
its own.

Markers are separate objects, because not every object store supports conditional writes: of two indexes that
claim a store concurrently, each sees the marker of the other or is the only one to succeed.
"""

from __future__ import annotations

import enum
import json
import re
from datetime import UTC, datetime

from services.cache.blobs import Blobs
from services.cache.entries import BLOB_ROOT

# Below the root, to which the permissions on a bucket may be limited. No tenant has this name.
MARKER_ROOT = f"{BLOB_ROOT}/.owners"
_MARKER = re.compile(rf"{MARKER_ROOT}/(?P<index_id>[0-9a-f]{{32}})\.json")


class Ownership(enum.Enum):
    """Relation of an object store to an index; see StoreOwnership in cache.proto."""

    OWNED = "owned"
    FOREIGN = "foreign"
    UNCLAIMED = "unclaimed"


class StoreClaim:
    """Claim of one index on one object store.

    Attributes:
        ownership, owners: ownership and ids of the owners as of the latest check; UNCLAIMED before the first.
    """

    def __init__(self, blobs: Blobs, index_id: str) -> None:
        self.index_id = index_id
        self.ownership = Ownership.UNCLAIMED
        self.owners: tuple[str, ...] = ()
        self._blobs = blobs

    async def check(self) -> Ownership:
        """Reads the markers and returns the ownership."""
        markers = [
            found["index_id"]
            async for page in self._blobs.list(MARKER_ROOT)
            for blob in page
            if (found := _MARKER.fullmatch(blob.key))
        ]
        self.owners = tuple(sorted(markers))
        if self.owners == (self.index_id,):
            self.ownership = Ownership.OWNED
        else:
            self.ownership = Ownership.FOREIGN if self.owners else Ownership.UNCLAIMED
        return self.ownership

    async def claim(self) -> Ownership:
        """Claims a store that carries no marker, unless another index does so concurrently.

        Call it only for a store in which the index accounts for every blob.
        """
        await self._write_marker()
        if await self.check() is not Ownership.OWNED:
            await self._blobs.delete([_make_key(self.index_id)])
            await self.check()
        return self.ownership

    async def adopt(self) -> None:
        """Claims the store and removes the markers of other indexes."""
        await self._write_marker()
        await self.check()
        await self._blobs.delete([_make_key(owner) for owner in self.owners if owner != self.index_id])
        await self.check()

    async def is_marked(self) -> bool:
        """Returns whether the store carries the marker of this index still."""
        return await self._blobs.stat(_make_key(self.index_id)) is not None

    async def _write_marker(self) -> None:
        marker = {"index_id": self.index_id, "claimed": datetime.now(UTC).isoformat(timespec="seconds")}
        await self._blobs.put(_make_key(self.index_id), json.dumps(marker).encode())


def _make_key(index_id: str) -> str:
    return f"{MARKER_ROOT}/{index_id}.json"
