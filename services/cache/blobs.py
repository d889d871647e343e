"""Port of the object store, which keeps blobs under keys. Implemented by `directory` and `s3`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from services.cache.entries import BLOB_ROOT


@dataclass(frozen=True, slots=True)
class BlobStat:
    """Size and age of a blob.

    Attributes:
        modified_ms: time of the last write, milliseconds since the epoch by the clock of the store.
    """

    key: str
    size_bytes: int
    modified_ms: int


class Blobs(ABC):
    """Object store. Every method raises DEPENDENCY_UNAVAILABLE when the store does not answer in time."""

    kind: str

    @abstractmethod
    async def put(self, key: str, data: bytes) -> None:
        """Writes a blob atomically: a reader sees all of it or none. It is durable and verified on return.

        Writing a key again replaces the blob and renews its modification time.
        """

    @abstractmethod
    async def get(self, key: str, size_bytes: int) -> bytes | None:
        """Returns the blob, or None if it does not exist. Reads at most one byte more than `size_bytes`."""

    async def get_stored(self, key: str, size_bytes: int) -> bytes | None:
        """As `get`, but always from the store itself."""
        return await self.get(key, size_bytes)

    @abstractmethod
    async def stat(self, key: str) -> BlobStat | None:
        """Returns size and age, or None if the blob does not exist."""

    @abstractmethod
    async def delete(self, keys: Sequence[str]) -> None:
        """Deletes blobs; missing ones are ignored."""

    @abstractmethod
    def list(self, folder: str = BLOB_ROOT) -> AsyncIterator[Sequence[BlobStat]]:
        """Yields every file below a folder, in pages, including those that a crash left incomplete."""

    @abstractmethod
    async def close(self) -> None:
        """Releases every resource. Call it last."""
