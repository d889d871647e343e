"""Port of the vector index, implemented by `embedded` (Milvus Lite) and `milvus` (a Milvus server)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.cache.entries import Entry, Space, Uses


@dataclass(frozen=True)
class Hit:
    """Entry found by its vector; `score` is the cosine, −1 to 1."""

    entry: Entry
    score: float


@dataclass(frozen=True)
class Selection:
    """Selects the rows of one tenant that match every field that is set."""

    entry_id: str | None = None
    identity: str | None = None
    model_id: str | None = None
    created_before_ms: int | None = None
    alive_at_ms: int | None = None


class Index(ABC):
    """Vector index: rows and their vectors, in one space for each retrieval encoder and dimension.

    The next search finds an upserted row and no deleted one. A space that was never written is empty. Every
    method raises ChorusError DEPENDENCY_UNAVAILABLE when the index does not answer in time, and
    ValueError for a value that is not allowed in a filter.
    """

    kind: str
    # 32 hexadecimal digits, created with the index and kept in it: the same after a restart and for every
    # process that opens the index.
    index_id: str

    @abstractmethod
    async def search(
        self,
        space: str,
        tenant: str,
        identity: str,
        vector: Sequence[float],
        limit: int,
        now_ms: int = 0,
    ) -> list[Hit]:
        """Returns the rows of this tenant and identity nearest to `vector`, best first, at most `limit`.

        Args:
            now_ms: rows that expired before are not found.
        """

    @abstractmethod
    async def get(self, space: str, tenant: str, entry_id: str) -> Entry | None:
        """Returns one row of this tenant, or None if it does not exist."""

    @abstractmethod
    async def read_vectors(
        self, space: str, tenant: str, entry_ids: Sequence[str]
    ) -> Mapping[str, tuple[Entry, NDArray[np.float32]]]:
        """Returns rows of this tenant and their vectors, by entry id; missing rows and rows of other tenants
        are left out."""

    @abstractmethod
    async def upsert(self, space: Space, entry: Entry, vector: Sequence[float]) -> None:
        """Writes or replaces a row; the first one creates the space."""

    @abstractmethod
    async def add_uses(self, space: str, tenant: str, uses: Mapping[str, Uses]) -> None:
        """Adds uses to rows of this tenant, by entry id; missing rows are ignored."""

    @abstractmethod
    async def delete(self, space: str, tenant: str, entry_ids: Sequence[str]) -> None:
        """Deletes rows of this tenant; missing rows and rows of other tenants are ignored."""

    @abstractmethod
    async def spaces(self) -> list[str]:
        """Returns the names of the existing spaces."""

    @abstractmethod
    def select(self, space: str, tenant: str, selection: Selection) -> AsyncIterator[list[Entry]]:
        """Yields the matching rows of this tenant, in pages. Includes every write acknowledged before
        the call."""

    @abstractmethod
    def every_entry(self, space: str) -> AsyncIterator[list[Entry]]:
        """Yields the rows of every tenant, in pages: for maintenance only, never to answer a caller.

        Raises DEPENDENCY_UNAVAILABLE for a missing space: without its rows, its blobs would look orphaned.
        """

    @abstractmethod
    async def close(self) -> None:
        """Releases every resource. Call it last."""
