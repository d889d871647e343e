"""Port: keeps blobs under keys. Implemented by `directory` and by `s3`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BlobStat:
    """`modified_ms`: milliseconds since the epoch, by the clock of the store."""

    key: str
    size_bytes: int
    modified_ms: int


class Blobs(ABC):
    """Every method raises ChorusError DEPENDENCY_UNAVAILABLE when the store does not answer in time."""

    kind: str

    @abstractmethod
    async def put(self, key: str, data: bytes) -> None:
        """Writes a blob whole: a reader sees all of it or none. Durable and verified when this returns.

        Writing a key again replaces it and renews its modification time.
        """

    @abstractmethod
    async def get(self, key: str, size_bytes: int) -> bytes | None:
        """The blob, None when there is none. Reads at most one byte more than the `size_bytes` expected."""

    @abstractmethod
    async def stat(self, key: str) -> BlobStat | None:
        """Size and age, None when there is none."""

    @abstractmethod
    async def delete(self, keys: Sequence[str]) -> None:
        """Deletes blobs; those that are not there are passed over."""

    @abstractmethod
    def list(self) -> AsyncIterator[Sequence[BlobStat]]:
        """Every file below the root, in pages: also what a crash left half written."""

    @abstractmethod
    async def close(self) -> None:
        """Gives back every resource. The last call."""
