"""Lists a tenant's entries in pages, ordered by what the ledger knows of them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from chorus_rpc.errors import invalid, not_found

from services.cache.entries import Entry
from services.cache.eviction.ledger import EntryKey, Ledger
from services.cache.eviction.priorities import Held
from services.cache.room import to_held
from services.cache.store import LatentStore

_SLICE: Final = 5_000  # entries between which other calls get their turn

Order: TypeAlias = Literal["newest", "used", "saved", "size", "hits"]
_VALUES: Final[Mapping[Order, Callable[[Held], float]]] = {
    "newest": lambda held: held.created_ms,
    "used": lambda held: held.used_ms,
    "saved": lambda held: held.saved_seconds,
    "size": lambda held: held.size_bytes,
    "hits": lambda held: held.hits,
}

# Position of an entry in a list. Lists are descending.
Place: TypeAlias = tuple[float, EntryKey]


@dataclass(frozen=True)
class Details:
    """A row, its collection, and what the ledger knows of its uses."""

    space: str
    entry: Entry
    held: Held


@dataclass(frozen=True)
class Page:
    """Entries of one page; `next_token` is empty on the last one."""

    entries: list[Details]
    next_token: str


async def list_entries(store: LatentStore, tenant: str, order: Order, size: int, token: str) -> Page:
    """Returns the page that follows `token`, or the first one.

    Raises INVALID_FIELD for a token that no page returned, and the errors of the index.
    """
    # One more than the page, to know whether another follows.
    best = await choose_places(store.ledger, tenant, order, size + 1, parse_token(token, tenant))
    found = await asyncio.gather(*(_read(store, key) for _, key in best[:size]))
    next_token = _format(best[size - 1]) if len(best) > size else ""
    return Page([each for each in found if each is not None], next_token)


async def choose_places(
    ledger: Ledger, tenant: str, order: Order, count: int, after: Place | None = None, *, space: str = ""
) -> list[Place]:
    """Returns a tenant's first entries in an order, descending.

    Args:
        count: upper bound on their number, at least 1.
        after: place after which they begin; None for the first ones.
        space: space that they are in; empty for any.
    """
    value = _VALUES[order]
    best: list[Place] = []  # a heap
    for number, key in enumerate(ledger):
        if number % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
        if key.tenant != tenant or (space and key.space != space) or (held := ledger.get(key)) is None:
            continue
        place = float(value(held)), key
        if after is not None and place >= after:
            continue
        if len(best) < count:
            heapq.heappush(best, place)
        elif place > best[0]:
            heapq.heapreplace(best, place)
    best.sort(reverse=True)
    return best


async def get_entry(store: LatentStore, tenant: str, entry_id: str) -> Details:
    """Returns one entry. Raises NOT_FOUND, and the errors of the index."""
    for space in await store.index.spaces():
        if (found := await _read(store, EntryKey(space, tenant, entry_id))) is not None:
            return found
    raise not_found("entry", entry_id)


async def _read(store: LatentStore, key: EntryKey) -> Details | None:
    entry = await store.index.get(key.space, key.tenant, key.entry_id)
    return None if entry is None else Details(key.space, entry, store.ledger.get(key) or to_held(entry))


def _format(place: Place) -> str:
    value, key = place
    return base64.urlsafe_b64encode(f"{value!r} {key.space} {key.entry_id}".encode()).decode()


def parse_token(token: str, tenant: str) -> Place | None:
    """Returns the last place of the page that had this token, or None for an empty one.

    Raises INVALID_FIELD for a token that no page had.
    """
    if not token:
        return None
    try:
        value, space, entry_id = base64.urlsafe_b64decode(token.encode("ascii")).decode("ascii").split(" ")
        place = float(value), EntryKey(space, tenant, entry_id)
    except (UnicodeError, binascii.Error, ValueError):
        raise invalid("page_token", "must be the next_page_token of an earlier page, or empty") from None
    if math.isnan(place[0]):
        raise invalid("page_token", "must be the next_page_token of an earlier page, or empty")
    return place
