"""Short ids: lists shorten ids, and other commands find a generation or a cache entry by a short id."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Final, TypeVar

from chorus_client import AsyncCacheClient, AsyncChorusClient, CacheEntry, ChorusError, Generation
from chorus_rpc import errors
from chorus_rpc.errors import invalid, not_found
from chorus_rpc.limits import SHA256_PATTERN

SHORT: Final = 8  # lower bound on the characters of a short id
MIN_PREFIX: Final = 4  # lower bound on the characters that a command accepts
SEARCHED: Final = 1_000  # newest generations among which a beginning is looked up
_SHOWN: Final = 5

Named = TypeVar("Named", Generation, CacheEntry)


def shorten(ids: Sequence[str]) -> list[str]:
    """Returns the shortest beginning of each id, at least SHORT characters, that no other id shares."""
    ordered = sorted(set(ids))
    shared = dict.fromkeys(ordered, 0)  # characters that an id shares with its nearest neighbour
    for left, right in itertools.pairwise(ordered):
        differ = (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
        common = next(differ, len(left))
        shared[left], shared[right] = max(shared[left], common), max(shared[right], common)
    return [id_[: max(SHORT, shared[id_] + 1)] for id_ in ids]


async def find_generation(client: AsyncChorusClient, text: str) -> Generation:
    """Returns the generation with the id `text`, or the one of the newest SEARCHED whose id begins with it.

    Upper and lower case are the same.

    Raises ChorusError: NOT_FOUND, or INVALID_FIELD that names the candidates if there are several.
    """
    text = text.strip()
    if not text:
        raise invalid("id", "must not be empty; `chorus jobs` lists the ids")
    # As given first: ids are lower-case, but a server may choose others.
    for candidate in dict.fromkeys((text, text.lower())):
        try:
            return await client.handle(candidate).status()
        except ChorusError as error:
            if error.reason != errors.NOT_FOUND:
                raise
            unknown = error
    if len(text) < MIN_PREFIX:
        raise unknown
    text = text.lower()
    return _choose(text, await client.list(None, SEARCHED), unknown)


async def find_entry(client: AsyncCacheClient, text: str) -> CacheEntry:
    """Returns the cache entry with the id `text`, or the one of the newest SEARCHED whose id begins with it.

    Raises ChorusError: NOT_FOUND, or INVALID_FIELD that names the candidates if there are several.
    """
    text = text.strip().lower()
    if re.fullmatch(SHA256_PATTERN, text):
        return await client.entry(text)
    if len(text) < MIN_PREFIX:
        raise invalid("id", f"must have at least {MIN_PREFIX} characters; `chorus cache list` lists the ids")
    return _choose(text, await client.list("newest", SEARCHED), not_found("entry", text))


def _choose(text: str, listed: Sequence[Named], unknown: ChorusError) -> Named:
    """Returns the one whose id begins with `text`; raises `unknown` if there is none."""
    matches = [each for each in listed if each.id.lower().startswith(text)]
    if not matches:
        raise unknown
    if len(matches) > 1:
        names = ", ".join(each.id for each in matches[:_SHOWN])
        more = f" and {len(matches) - _SHOWN} more" if len(matches) > _SHOWN else ""
        raise invalid("id", f"{text!r} begins {len(matches)} ids: {names}{more}; give more characters")
    return matches[0]
