"""Compares the scene that a video shows with the scene that was requested."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from models.shapes.world import Scene, Thing

OBJECT_FIELDS: Final = ("shape", "colour", "motion", "size", "place")
FIELDS: Final = ("background", "texture", "count", *OBJECT_FIELDS)


@dataclass(frozen=True)
class WantedThing:
    """Object of a request. None stands for an attribute that the request leaves open."""

    shape: str | None = None
    colour: str | None = None
    motion: str | None = None
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Wanted:
    """Request for a video. None stands for an attribute that the request leaves open."""

    background: str | None
    texture: str | None
    things: Sequence[WantedThing | Thing]


def compare(shown: Scene, wanted: Scene | Wanted) -> dict[str, bool]:
    """Returns for each of FIELDS whether the scene matches `wanted`, and for `all` whether every field does.

    An attribute of objects matches if it does for every wanted object. Objects are matched so that most
    attributes agree. If an object is missing, none of these attributes matches; if there are too many, only
    `count` reports the surplus. An attribute that `wanted` leaves open matches.
    """
    right = {
        "background": wanted.background in (None, shown.background),
        "texture": wanted.texture in (None, shown.texture),
        "count": len(shown.things) == len(wanted.things),
    } | match(shown.things, wanted.things)[0]
    return right | {"all": all(right.values())}


def match(
    shown: Sequence[Thing], wanted: Sequence[WantedThing | Thing]
) -> tuple[dict[str, bool], tuple[int, ...]]:
    """Returns which of OBJECT_FIELDS agree, and the index in `shown` of each wanted object, or ()."""

    def agreement(chosen: Sequence[int]) -> tuple[int, dict[str, bool]]:
        agreed = {
            f: [getattr(w, f) in (None, getattr(shown[i], f)) for i, w in zip(chosen, wanted, strict=True)]
            for f in OBJECT_FIELDS
        }
        return sum(map(sum, agreed.values())), {f: all(a) for f, a in agreed.items()}

    best: tuple[int, dict[str, bool]] = (-1, dict.fromkeys(OBJECT_FIELDS, False))
    matched: tuple[int, ...] = ()
    for chosen in itertools.permutations(range(len(shown)), len(wanted)):
        tried = agreement(chosen)
        if tried[0] > best[0]:
            best, matched = tried, chosen
    return best[1], matched


def accuracy(shown: Sequence[Scene], wanted: Sequence[Scene | Wanted]) -> dict[str, float]:
    """Computes the share of scenes that match `wanted`, for each of FIELDS and for `all`."""
    hits = [compare(s, w) for s, w in zip(shown, wanted, strict=True)]
    return {f: sum(h[f] for h in hits) / len(hits) for f in (*FIELDS, "all")}
