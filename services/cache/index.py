"""Port: finds entries by vector. Implemented by `milvus` for Milvus Lite and for any Milvus server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from services.cache.entries import Entry, Space


@dataclass(frozen=True)
class Hit:
    """An entry found by its vector; `score` is the cosine, −1 to 1."""

    entry: Entry
    score: float


@dataclass(frozen=True)
class Selection:
    """Rows of one tenant that match every field that is set."""

    entry_id: str | None = None
    identity: str | None = None
    model_id: str | None = None
    created_before_ms: int | None = None


class Index(ABC):
    """Rows and their vectors, in one space for each retrieval encoder and dimension.

    The next search finds a row that was upserted, and not one that was deleted. A space nobody wrote to is
    empty. Every method raises ChorusError DEPENDENCY_UNAVAILABLE when the index does not answer in time, and
    ValueError for a value that may not stand in a filter.
    """

    kind: str

    @abstractmethod
    async def search(
        self, space: str, tenant: str, identity: str, vector: Sequence[float], limit: int
    ) -> list[Hit]:
        """The rows of this tenant and identity nearest to `vector`, best first, at most `limit`."""

    @abstractmethod
    async def get(self, space: str, tenant: str, entry_id: str) -> Entry | None:
        """One row of this tenant."""

    @abstractmethod
    async def upsert(self, space: Space, entry: Entry, vector: Sequence[float]) -> None:
        """Writes or replaces a row; makes the space when it is the first."""

    @abstractmethod
    async def delete(self, space: str, tenant: str, entry_ids: Sequence[str]) -> None:
        """Deletes rows of this tenant; those that are not there, or another tenant's, are passed over."""

    @abstractmethod
    async def spaces(self) -> list[str]:
        """Names of the spaces that exist."""

    @abstractmethod
    def select(self, space: str, tenant: str, selection: Selection) -> AsyncIterator[list[Entry]]:
        """The rows of this tenant that match, in pages. Sees every write acknowledged before it began."""

    @abstractmethod
    def every_entry(self, space: str) -> AsyncIterator[list[Entry]]:
        """The rows of every tenant, in pages: for maintenance alone, never for an answer to a caller."""

    @abstractmethod
    async def close(self) -> None:
        """Gives back every resource. The last call."""
