"""What a tenant's entries occupy, and their deletion on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from chorus_rpc import semconv
from chorus_rpc.telemetry import span

from services.cache.entries import Entry
from services.cache.index import Index, Selection
from services.cache.store import LatentStore

_BATCH = 500


@dataclass(frozen=True)
class ModelUsage:
    """Entries of one model, and the bytes of their blobs by step boundary, with None for side data."""

    entries: int
    bytes_by_step: Mapping[int | None, int]

    @property
    def size_bytes(self) -> int:
        return sum(self.bytes_by_step.values())


@dataclass(frozen=True)
class StorageUsage:
    """Entries and bytes of their blobs; a shared blob counts once.

    Attributes:
        models: the same by model id, the largest first.
    """

    models: Mapping[str, ModelUsage]

    @property
    def entries(self) -> int:
        return sum(each.entries for each in self.models.values())

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self.models.values())


class _Tally:
    """Adds up entries."""

    def __init__(self) -> None:
        self._entries: Counter[str] = Counter()
        # By key of the blob. An identity has one model, so no two models share a blob.
        self._blobs: dict[str, tuple[str, int | None, int]] = {}

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._entries[entry.model_id] += 1
            for key, blob in zip(entry.keys, entry.blobs, strict=True):
                self._blobs[key] = entry.model_id, blob.step, blob.size_bytes

    def finish(self) -> StorageUsage:
        steps: dict[str, Counter[int | None]] = {model: Counter() for model in self._entries}
        for model, step, size in self._blobs.values():
            steps[model][step] += size
        models = {model: ModelUsage(self._entries[model], steps[model]) for model in steps}
        ordered = sorted(models.items(), key=lambda item: item[1].size_bytes, reverse=True)
        return StorageUsage(dict(ordered))


async def measure_usage(index: Index, tenant: str) -> StorageUsage:
    """Counts the entries and bytes of a tenant."""
    tally = _Tally()
    for space in await index.spaces():
        async for page in index.select(space, tenant, Selection()):
            tally.add(page)
    return tally.finish()


async def purge(
    store: LatentStore, tenant: str, selection: Selection, *, validate_only: bool = False
) -> StorageUsage:
    """Deletes the matching rows of a tenant; the sweeper deletes their blobs after the grace period.

    Args:
        validate_only: whether to count only, and to delete nothing.
    """
    tally = _Tally()
    for space in await store.index.spaces():
        found: list[str] = []
        async for page in store.index.select(space, tenant, selection):
            tally.add(page)
            found += [each.entry_id for each in page]
        for start in range(0, 0 if validate_only else len(found), _BATCH):
            with span(semconv.SPAN_INDEX_DELETE):
                await store.delete_rows(space, tenant, found[start : start + _BATCH])
    return tally.finish()
