"""Builds prompt sets from the shipped model's world, and compares videos with the scenes requested."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Protocol, TypeVar

import torch

from evaluation.prompts import Group, PromptCase
from models.movingshapes import world
from models.movingshapes.analyzer import OBJECT_FIELDS, compare
from models.movingshapes.captions import Phrasing, caption
from models.movingshapes.world import Scene, Split, Thing

T = TypeVar("T", covariant=True)

# Differences between donor and target: an attribute of one object, the background, or an object that only the
# target has (`added`) or that it lacks (`removed`).
SINGLE_EDITS: Final = ("colour", "background", "shape", "motion", "size", "added", "removed")
# Further kinds: two attributes, of the same object or of two; everything; or only the wording.
UNRELATED: Final = "unrelated"
KINDS: Final = (*SINGLE_EDITS, "two_edits", UNRELATED, "paraphrase")
_VALUES: Final = {
    "colour": tuple(world.COLOURS),
    "shape": world.SHAPES,
    "motion": tuple(world.MOTIONS),
    "size": tuple(world.SIZES),
}
_OBJECTS: Final = {"added": 2, "removed": 1}  # number of objects in the target, for these kinds
_TRIES: Final = 100_000


@dataclass(frozen=True)
class Verdict:
    """Comparison of a video with the scenes that target and donor requested.

    Attributes:
        right: Attribute, or `all` → whether the video matches the target's prompt.
        followed: Attribute in which donor and target differ → whether the video matches the *donor's* prompt.
    """

    right: dict[str, bool] = field(default_factory=dict)
    followed: dict[str, bool] = field(default_factory=dict)


def judge(shown: Scene, target: Scene, donor: Scene) -> Verdict:
    """Compares the scene that a video shows with the target's scene and with the donor's."""
    like_donor = compare(shown, donor)
    return Verdict(
        compare(shown, target), {name: like_donor[name] for name in list_differences(donor, target)}
    )


def list_differences(donor: Scene, target: Scene) -> tuple[str, ...]:
    """Returns the attributes in which two scenes differ, those of objects only if their numbers are equal."""
    same = compare(target, donor)
    comparable = OBJECT_FIELDS if len(donor.things) == len(target.things) else ()
    return tuple(name for name in ("background", "count", *comparable) if not same[name])


class Pool:
    """Scenes of a split, drawn with a seed."""

    def __init__(self, split: Split, seed: int) -> None:
        self.split: Split = split
        self.rng = random.Random(seed)
        self._draw = torch.Generator().manual_seed(seed)

    @cached_property
    def singles(self) -> list[Scene]:
        """Scenes of one object."""
        return world.single_scenes(self.split)

    @cached_property
    def _members(self) -> frozenset[tuple[str, Thing]]:
        return frozenset((scene.background, scene.things[0]) for scene in self.singles)

    def __contains__(self, scene: Scene) -> bool:
        """Returns whether the split contains every combination of the scene."""
        return all((scene.background, thing) in self._members for thing in scene.things)

    def draw(self, objects: int) -> Scene:
        """Draws a random scene of one or two objects."""
        return self.rng.choice(self.singles) if objects == 1 else world.pair_scene(self.split, self._draw)

    def donors(self, target: Scene, kind: str) -> list[Scene]:
        """Returns the scenes of the split that differ from the target only in `kind`.

        For `unrelated` this is at most one scene, drawn at random.
        """
        things = target.things
        if kind == "paraphrase":
            return [target]
        if kind == UNRELATED:
            other = self.draw(len(things))
            return [other] if _differ_in_everything(other, target) else []
        return [scene for scene in self._edits(target, kind) if scene != target and scene in self]

    def _edits(self, target: Scene, kind: str) -> Iterable[Scene]:
        """Returns candidates for donors of an edit, from any split."""
        things = target.things
        if kind == "background":
            return [replace(target, background=name) for name in world.BACKGROUNDS]
        if kind == "added":
            return [replace(target, things=(thing,)) for thing in things if len(things) > 1]
        if kind == "removed":
            others = [scene.things[0] for scene in self.singles if scene.background == target.background]
            pairs = [pair for thing in others for pair in ((*things, thing), (thing, *things))]
            return [replace(target, things=pair) for pair in pairs if len(pair) <= world.MAX_OBJECTS]
        attributes = [(i, name) for i in range(len(things)) for name in _VALUES]
        if kind == "two_edits":
            return [
                second_edit
                for one, other in itertools.combinations(attributes, 2)
                for first_edit in _change_attribute(target, *one)
                for second_edit in _change_attribute(first_edit, *other)
            ]
        return [
            scene for i, name in attributes if name == kind for scene in _change_attribute(target, i, name)
        ]

    def pair(self, kind: str, objects: int) -> tuple[Scene, Scene]:
        """Draws a donor and a target.

        Args:
            kind: Difference between the two.
            objects: Number of objects in the target, unless the kind determines it.

        Raises ValueError if the split contains no such pair.
        """
        objects = _OBJECTS.get(kind, objects)
        for _ in range(_TRIES):
            target = self.draw(objects)
            donors = self.donors(target, kind)
            if donors:
                return self.rng.choice(donors), target
        raise ValueError(
            f"the split {self.split} has no two scenes of {objects} objects that differ in {kind}"
        )


def _change_attribute(scene: Scene, index: int, name: str) -> list[Scene]:
    """Returns the scenes that differ from `scene` only in attribute `name` of object `index`."""
    thing = scene.things[index]
    values = (value for value in _VALUES[name] if value != getattr(thing, name))
    return [
        replace(
            scene,
            things=(*scene.things[:index], replace(thing, **{name: value}), *scene.things[index + 1 :]),
        )
        for value in values
    ]


def _differ_in_everything(one: Scene, other: Scene) -> bool:
    return one.background != other.background and all(
        getattr(a, name) != getattr(b, name)
        for a, b in zip(one.things, other.things, strict=True)
        for name in OBJECT_FIELDS
    )


def make_groups(split: Split, pairs: int, seed: int, phrasing: Phrasing) -> list[Group]:
    """Builds pairs of a donor and a target, cycling through all kinds of edits and one and two objects.

    The two prompts differ only in the words for what was edited, except in paraphrases and unrelated pairs.
    The same arguments return the same groups.
    """
    pool = Pool(split, seed)
    groups = []
    for number in range(pairs):
        kind = KINDS[number % len(KINDS)]
        donor, target = pool.pair(kind, objects=1 + number // len(KINDS) % 2)
        groups.append(Group(kind, *_write_prompts(kind, donor, target, pool.rng, phrasing)))
    return groups


def _write_prompts(
    kind: str, donor: Scene, target: Scene, rng: random.Random, phrasing: Phrasing
) -> tuple[PromptCase, tuple[PromptCase]]:
    same_wording = kind not in ("paraphrase", UNRELATED)
    while True:
        seed = rng.getrandbits(32)
        other = seed if same_wording else rng.getrandbits(32)
        first = caption(donor, _OneDraw(seed), phrasing)
        then = caption(target, _OneDraw(other), phrasing)
        if first != then:
            return PromptCase(first, donor), (PromptCase(then, target),)


class _Indexable(Protocol[T]):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> T: ...


class _OneDraw(random.Random):
    """Consumes exactly one random number for every choice, with any number of options.

    Captions of two scenes that differ in one attribute therefore differ only in the words for that attribute.
    """

    def choice(self, seq: _Indexable[T]) -> T:
        return seq[int(self.random() * len(seq))]
