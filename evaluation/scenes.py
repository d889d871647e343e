"""Prompt sets of the shipped model's world, and what a video shows of what was asked."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Protocol, TypeVar

import torch

from evaluation.prompts import Ask, Group
from models.movingshapes import world
from models.movingshapes.analyzer import OF_THINGS, compare
from models.movingshapes.captions import Phrasing, caption
from models.movingshapes.world import Scene, Split, Thing

T = TypeVar("T", covariant=True)

# In what donor and target differ: an attribute of one object, the background, or an object that the target
# has besides (`added`) or lacks (`removed`).
SINGLE_EDITS: Final = ("colour", "background", "shape", "motion", "size", "added", "removed")
# Besides: two attributes, of the same object or of two; everything; or only the words.
UNRELATED: Final = "unrelated"
KINDS: Final = (*SINGLE_EDITS, "two_edits", UNRELATED, "paraphrase")
_VALUES: Final = {
    "colour": tuple(world.COLOURS),
    "shape": world.SHAPES,
    "motion": tuple(world.MOTIONS),
    "size": tuple(world.SIZES),
}
_OBJECTS: Final = {"added": 2, "removed": 1}  # that the target of these kinds has
_TRIES: Final = 100_000


@dataclass(frozen=True)
class Verdict:
    """What a video shows.

    Attributes:
        right: attribute, or `all` → whether it is as the target prompt asks.
        followed: attribute in which donor and target differ → whether it is as the *donor's* prompt asked.
    """

    right: dict[str, bool] = field(default_factory=dict)
    followed: dict[str, bool] = field(default_factory=dict)


def judge(shown: Scene, target: Scene, donor: Scene) -> Verdict:
    """Compares what a video shows with what was asked, and with what the donor was asked for."""
    like_donor = compare(shown, donor)
    return Verdict(compare(shown, target), {name: like_donor[name] for name in differing(donor, target)})


def differing(donor: Scene, target: Scene) -> tuple[str, ...]:
    """The attributes in which two scenes differ; those of objects only where there are equally many."""
    same = compare(target, donor)
    comparable = OF_THINGS if len(donor.things) == len(target.things) else ()
    return tuple(name for name in ("background", "count", *comparable) if not same[name])


class Pool:
    """The scenes of a split, drawn by seed."""

    def __init__(self, split: Split, seed: int) -> None:
        self.split: Split = split
        self.rng = random.Random(seed)
        self._draw = torch.Generator().manual_seed(seed)

    @cached_property
    def singles(self) -> list[Scene]:
        return world.single_scenes(self.split)

    @cached_property
    def _members(self) -> frozenset[tuple[str, Thing]]:
        return frozenset((scene.background, scene.things[0]) for scene in self.singles)

    def __contains__(self, scene: Scene) -> bool:
        """Whether the split holds every combination of the scene."""
        return all((scene.background, thing) in self._members for thing in scene.things)

    def draw(self, objects: int) -> Scene:
        """A random scene of one or two objects."""
        return self.rng.choice(self.singles) if objects == 1 else world.pair_scene(self.split, self._draw)

    def donors(self, target: Scene, kind: str) -> list[Scene]:
        """The scenes of the split that differ from the target in just this; for `unrelated` a random one."""
        things = target.things
        if kind == "paraphrase":
            return [target]
        if kind == UNRELATED:
            other = self.draw(len(things))
            return [other] if _nothing_alike(other, target) else []
        return [scene for scene in self._edits(target, kind) if scene != target and scene in self]

    def _edits(self, target: Scene, kind: str) -> Iterable[Scene]:
        """What a donor could be, in any split."""
        things = target.things
        if kind == "background":
            return [replace(target, background=name) for name in world.BACKGROUNDS]
        if kind == "added":
            return [replace(target, things=(thing,)) for thing in things if len(things) > 1]
        if kind == "removed":
            more = [one.things[0] for one in self.singles if one.background == target.background]
            pairs = [pair for thing in more for pair in ((*things, thing), (thing, *things))]
            return [replace(target, things=pair) for pair in pairs if len(pair) <= world.MAX_OBJECTS]
        places = [(i, name) for i in range(len(things)) for name in _VALUES]
        if kind == "two_edits":
            return [
                twice
                for one, other in itertools.combinations(places, 2)
                for once in _changed(target, *one)
                for twice in _changed(once, *other)
            ]
        return [scene for i, name in places if name == kind for scene in _changed(target, i, name)]

    def pair(self, kind: str, objects: int) -> tuple[Scene, Scene]:
        """A donor and a target of so many objects, where the kind leaves a choice.

        Raises ValueError where the split has none.
        """
        objects = _OBJECTS.get(kind, objects)
        for _ in range(_TRIES):
            target = self.draw(objects)
            donors = self.donors(target, kind)
            if donors:
                return self.rng.choice(donors), target
        raise ValueError(f"the split {self.split} has no two scenes of {objects} that differ in {kind}")


def _changed(scene: Scene, index: int, name: str) -> list[Scene]:
    """The scenes that differ from one in just this attribute of this object."""
    thing = scene.things[index]
    values = (value for value in _VALUES[name] if value != getattr(thing, name))
    return [
        replace(
            scene,
            things=(*scene.things[:index], replace(thing, **{name: value}), *scene.things[index + 1 :]),
        )
        for value in values
    ]


def _nothing_alike(one: Scene, other: Scene) -> bool:
    return one.background != other.background and all(
        getattr(a, name) != getattr(b, name)
        for a, b in zip(one.things, other.things, strict=True)
        for name in OF_THINGS
    )


def make_groups(split: Split, pairs: int, seed: int, phrasing: Phrasing) -> list[Group]:
    """Pairs of a donor and a target from a split, in turn of every kind and of one and of two objects.

    Only what differs is worded differently, but in paraphrases and unrelated pairs. The same arguments give
    the same groups.
    """
    pool = Pool(split, seed)
    groups = []
    for number in range(pairs):
        kind = KINDS[number % len(KINDS)]
        donor, target = pool.pair(kind, objects=1 + number // len(KINDS) % 2)
        groups.append(Group(kind, *_worded(kind, donor, target, pool.rng, phrasing)))
    return groups


def _worded(
    kind: str, donor: Scene, target: Scene, rng: random.Random, phrasing: Phrasing
) -> tuple[Ask, tuple[Ask]]:
    alike = kind not in ("paraphrase", UNRELATED)
    while True:
        seed = rng.getrandbits(32)
        other = seed if alike else rng.getrandbits(32)
        first = caption(donor, _OneDraw(seed), phrasing)
        then = caption(target, _OneDraw(other), phrasing)
        if first != then:
            return Ask(first, donor), (Ask(then, target),)


class _Indexable(Protocol[T]):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> T: ...


class _OneDraw(random.Random):
    """Spends one number on every choice, however many there are to choose from.

    So captions of two scenes that differ in one attribute differ in the words for it, and in no others.
    """

    def choice(self, seq: _Indexable[T]) -> T:
        return seq[int(self.random() * len(seq))]
