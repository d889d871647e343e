"""Counts a tenant's entries from memory, without reading the index."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import numpy as np

from services.cache.entries import UNUSED, Uses
from services.cache.eviction.ledger import Ledger
from services.cache.growth import Growth, add_up

_SLICE: Final = 5_000  # entries between which other calls get their turn


@dataclass(frozen=True)
class Survey:
    """A tenant's entries; blobs that they share count for each of them.

    Attributes:
        growth: None if it was not requested.
    """

    entries: int
    size_bytes: int
    uses: Uses
    growth: Growth | None


async def survey(ledger: Ledger, tenant: str, growth_points: int) -> Survey:
    """Counts the entries that the ledger holds.

    Args:
        growth_points: upper bound on the points of the growth, at least 2; 0 for none.
    """
    created: list[int] = []
    sizes: list[int] = []
    uses = UNUSED
    for number, key in enumerate(ledger):
        if number % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
        held = ledger.get(key) if key.tenant == tenant else None
        if held is not None:
            created.append(held.created_ms)
            sizes.append(held.size_bytes)
            uses = uses.plus(Uses(held.hits, held.saved_seconds, held.used_ms)) if held.hits else uses
    growth = None
    if growth_points:
        growth = add_up(np.array(created, np.int64), np.array(sizes, np.int64), growth_points)
    return Survey(len(sizes), sum(sizes), uses, growth)
