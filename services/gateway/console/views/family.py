"""Donors and descendants of a generation, as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chorus_client import Generation

from services.gateway.console.views.cards import Card, build_card

# Upper bounds on the generations of a tree, and on those of one line in it.
MAX_MEMBERS: Final = 200
_MAX_DEPTH: Final = 30


@dataclass(frozen=True)
class Member:
    """A generation with those that reused it.

    Attributes:
        chosen: whether it is the one whose family is shown.
    """

    card: Card
    chosen: bool
    children: tuple[Member, ...]


def build_family(ancestors: Sequence[Generation], known: Iterable[Generation], chosen: Generation) -> Member:
    """Returns the tree from the oldest known ancestor of a generation on.

    Args:
        ancestors: its donor, the donor's donor, and so on.
        known: generations among which descendants are sought, each with its donor.
    """
    members: dict[str, Generation] = {each.id: each for each in (*known, *ancestors, chosen)}
    children: dict[str, list[Generation]] = {}
    for each in members.values():
        if each.donor is not None and each.donor.generation_id:
            children.setdefault(each.donor.generation_id, []).append(each)
    root = ancestors[-1] if ancestors else chosen
    return _grow(root, children, chosen.id, set(), 1)


def _grow(
    generation: Generation,
    children: Mapping[str, Sequence[Generation]],
    chosen: str,
    seen: set[str],
    depth: int,
) -> Member:
    seen.add(generation.id)
    grown = []
    for child in sorted(children.get(generation.id, ()), key=lambda each: each.created):
        if child.id not in seen and len(seen) < MAX_MEMBERS and depth < _MAX_DEPTH:
            grown.append(_grow(child, children, chosen, seen, depth + 1))
    return Member(build_card(generation), generation.id == chosen, tuple(grown))
