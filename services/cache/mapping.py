"""Places a tenant's entries in a plane, by their retrieval vectors."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import numpy as np
from chorus_rpc.limits import MAX_MAPPED_PROMPT_CHARACTERS

from services.cache.entries import Entry
from services.cache.eviction.priorities import Held
from services.cache.listing import Order, choose_places
from services.cache.projection import project
from services.cache.room import to_held
from services.cache.store import LatentStore


@dataclass(frozen=True)
class Mapped:
    """An entry, what the ledger knows of its uses, and its coordinates, −1 to 1."""

    entry: Entry
    held: Held
    x: float
    y: float

    @property
    def prompt(self) -> str:
        """The beginning of the prompt."""
        return self.entry.prompt[:MAX_MAPPED_PROMPT_CHARACTERS]


@dataclass(frozen=True)
class EntryMap:
    """Entries in a plane.

    Attributes:
        left_out: number of the tenant's entries that are not in it.
        explained_share: share of the variance of the vectors that the plane has, 0 to 1.
    """

    entries: list[Mapped]
    left_out: int
    explained_share: float


async def map_entries(store: LatentStore, tenant: str, order: Order, limit: int) -> EntryMap:
    """Places the first entries in an order.

    Vectors of different encoders cannot be compared: only entries of the encoder that has most have a place.

    Raises the errors of the index.
    """
    counts = Counter(key.space for key in store.ledger if key.tenant == tenant)
    if not counts:
        return EntryMap([], 0, 1.0)
    [(space, _)] = counts.most_common(1)
    chosen = await choose_places(store.ledger, tenant, order, limit, space=space)
    found = await store.index.read_vectors(space, tenant, [key.entry_id for _, key in chosen])
    rows = [(key, *found[key.entry_id]) for _, key in chosen if key.entry_id in found]
    if not rows:
        return EntryMap([], counts.total(), 1.0)
    projection = await asyncio.to_thread(project, np.array([vector for _, _, vector in rows], np.float32))
    entries = [
        Mapped(entry, store.ledger.get(key) or to_held(entry), float(x), float(y))
        for (key, entry, _), (x, y) in zip(rows, projection.places, strict=True)
    ]
    return EntryMap(entries, counts.total() - len(entries), projection.explained_share)
