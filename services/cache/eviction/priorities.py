"""Priorities of entries: when the cache is full, the entry with the lowest one is evicted. Pure functions.

`worth` is ours; the others are for comparison on a trace (`python -m bench.eviction`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

# Chosen on the traces of `python -m bench.eviction --tune`.
_FIRST_SAVING: Final = 0.3  # share of an entry's computation that it is expected to save before its first use
_DUPLICATE_SHARE: Final = 0.3  # left of that for an entry that equals another one: either serves the same
_SIMILAR_FROM: Final = 0.8  # similarity from which an entry counts as a duplicate in part
_SEED_DRAWN_SHARE: Final = 0.5  # left of it if the server drew the seed: exact repeats are unlikely
# Left of it if the seed was drawn and the video was made from a donor: its last latents serve repeats only.
_REPEAT_UNLIKELY_SHARE: Final = 0.02


@dataclass(frozen=True)
class Held:
    """What a priority is computed from.

    Attributes:
        size_bytes: size of the entry's blobs.
        cost_seconds: time to compute the latents again.
        created_ms, used_ms: time of the admission and of the last use, milliseconds since the epoch.
        hits: number of requests that used the entry.
        saved_seconds: computation that these saved.
        similarity: cosine to the nearest entry that the cache held at the admission; 0 if there was none.
        from_hit: whether the latents were made from another entry.
        seed_drawn: whether the server drew the seed; people rarely request such a video again.
        expires_ms: time from which the entry is no longer found; 0 for never.
        pinned: whether the entry is never evicted.
    """

    size_bytes: int
    cost_seconds: float
    created_ms: int
    used_ms: int
    hits: int = 0
    saved_seconds: float = 0.0
    similarity: float = 0.0
    from_hit: bool = False
    seed_drawn: bool = False
    expires_ms: int = 0
    pinned: bool = False


# Takes the clock as well: the priority of the entry that was evicted last.
Priority: TypeAlias = Callable[[Held, float], float]


def worth(held: Held, clock: float) -> float:
    """Seconds saved per megabyte, so far and by an expected first use, above what was evicted last.

    Adding the clock ages entries that are no longer used (GreedyDual-Size-Frequency, Cherkasova 1998).
    """
    duplicate = max(0.0, min(1.0, (held.similarity - _SIMILAR_FROM) / (1 - _SIMILAR_FROM)))
    share = _FIRST_SAVING * (1 - duplicate * (1 - _DUPLICATE_SHARE))
    if held.seed_drawn:
        share *= _REPEAT_UNLIKELY_SHARE if held.from_hit else _SEED_DRAWN_SHARE
    return clock + (share * held.cost_seconds + held.saved_seconds) / (held.size_bytes / 1e6)


def lru(held: Held, clock: float) -> float:
    """Least recently used."""
    return held.used_ms


def fifo(held: Held, clock: float) -> float:
    """First in, first out."""
    return held.created_ms


def lcbfu(held: Held, clock: float) -> float:
    """Least computationally beneficial and frequently used (NIRVANA, NSDI 2024): time saved by all hits."""
    return held.hits * held.cost_seconds


PRIORITIES: Final[Mapping[str, Priority]] = {"worth": worth, "lru": lru, "fifo": fifo, "lcbfu": lcbfu}
