"""Uses of entries that their rows do not contain yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from services.cache.entries import UNUSED, Uses
from services.cache.eviction.ledger import EntryKey

_BATCH = 500


class UnsavedUses:
    """Collects uses until they are saved."""

    def __init__(self) -> None:
        self._uses: dict[EntryKey, Uses] = {}

    def add(self, key: EntryKey, uses: Uses) -> None:
        self._uses[key] = self._uses.get(key, UNUSED).plus(uses)

    def forget(self, key: EntryKey) -> None:
        self._uses.pop(key, None)

    def take(self) -> Iterator[tuple[str, str, dict[str, Uses]]]:
        """Yields space, tenant and uses by entry id, in batches, and forgets them."""
        taken, self._uses = self._uses, {}
        grouped: dict[tuple[str, str], list[EntryKey]] = defaultdict(list)
        for key in taken:
            grouped[key.space, key.tenant].append(key)
        for (space, tenant), keys in grouped.items():
            for start in range(0, len(keys), _BATCH):
                yield space, tenant, {key.entry_id: taken[key] for key in keys[start : start + _BATCH]}
