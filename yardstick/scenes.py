"""Prompt sets of the shipped model's world, and what a video shows of what was asked."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Protocol, TypeVar

import torch

from models.movingshapes import world
from models.movingshapes.analyzer import OF_THINGS, compare
from models.movingshapes.captions import Phrasing, caption
from models.movingshapes.world import Scene, Split, Thing
from yardstick.prompts import Ask, Group

T = TypeVar("T", covariant=True)

# In what donor and target differ: one attribute of one object, the background, the number of objects,
# everything, or only the words.
KINDS: Final = ("colour", "background", "shape", "motion", "size", "count", "unrelated", "paraphrase")
_VALUES: Final = {
    "colour": tuple(world.COLOURS),
    "shape": world.SHAPES,
    "motion": tuple(world.MOTIONS),
    "size": tuple(world.SIZES),
}
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
        if kind == "unrelated":
            other = self.draw(len(things))
            return [other] if _nothing_alike(other, target) else []
        if kind == "background":
            found = [replace(target, background=name) for name in world.BACKGROUNDS]
        elif kind != "count":
            found = [
                replace(target, things=(*things[:i], replace(thing, **{kind: value}), *things[i + 1 :]))
                for i, thing in enumerate(things)
                for value in _VALUES[kind]
            ]
        elif len(things) > 1:
            found = [replace(target, things=(thing,)) for thing in things]
        else:
            more = [scene.things[0] for scene in self.singles if scene.background == target.background]
            found = [
                replace(target, things=pair)
                for thing in more
                for pair in ((*things, thing), (thing, *things))
            ]
        return [scene for scene in found if scene != target and scene in self]

    def pair(self, kind: str, objects: int) -> tuple[Scene, Scene]:
        """A donor and a target of so many objects. Raises ValueError where the split has none."""
        for _ in range(_TRIES):
            target = self.draw(objects)
            donors = self.donors(target, kind)
            if donors:
                return self.rng.choice(donors), target
        raise ValueError(f"the split {self.split} has no two scenes of {objects} that differ in {kind}")


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
    alike = kind not in ("paraphrase", "unrelated")
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
