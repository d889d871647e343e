"""Edits of scenes: what a user changes when most of a prompt stays."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final, Literal

from models.shapes.world import (
    COLOURS,
    MAX_OBJECTS,
    MOTIONS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Split,
    Thing,
    combination,
    draw_scene,
    find_split,
)

Edit = Literal["colour", "background", "shape", "size", "motion", "texture", "place", "count"]
EDITS: Final[tuple[Edit, ...]] = (
    "colour",
    "background",
    "shape",
    "size",
    "motion",
    "texture",
    "place",
    "count",
)
# Edits after which the donor does not show what the seed has to decide: where the new object is, at which
# angle the new stripes are.
OPENING: Final[frozenset[Edit]] = frozenset({"texture", "place", "count"})


def draw_edit(scene: Scene, edit: Edit, split: Split, rng: random.Random, attempts: int = 50) -> Scene | None:
    """Draws a scene that differs from `scene` in one respect, and whose combinations belong to a split.

    The edit `count` adds an object to a scene of one, and removes one from a scene of two; `texture` may also
    remove a texture. Returns None if `attempts` draws found no such scene: there may be none.
    """
    for _ in range(attempts):
        edited = _edit(scene, edit, rng)
        differs = all(t.colour != edited.background for t in edited.things)
        if differs and all(find_split(combination(edited, t)) == split for t in edited.things):
            return edited
    return None


def _edit(scene: Scene, edit: Edit, rng: random.Random) -> Scene:
    if edit == "background":
        return replace(scene, background=_other(tuple(COLOURS), scene.background, rng))
    if edit == "texture":
        return replace(scene, texture=_other(TEXTURES, scene.texture, rng))
    things = list(scene.things)
    i = rng.randrange(len(things))
    if edit == "count" and len(things) == MAX_OBJECTS:
        del things[i]
    elif edit == "count":
        added = draw_scene("train", rng, 1).things[0]
        taken = {t.place for t in things}
        things.append(replace(added, place=None if added.place in taken else added.place))
    else:
        things[i] = _edit_thing(things[i], edit, {t.place for t in things}, rng)
    return replace(scene, things=tuple(things))


def _edit_thing(thing: Thing, edit: Edit, taken: set[str | None], rng: random.Random) -> Thing:
    if edit == "colour":
        return replace(thing, colour=_other(tuple(COLOURS), thing.colour, rng))
    if edit == "shape":
        return replace(thing, shape=_other(SHAPES, thing.shape, rng))
    if edit == "size":
        return replace(thing, size=_other(tuple(SIZES), thing.size, rng))
    if edit == "motion":
        return replace(thing, motion=_other(tuple(MOTIONS), thing.motion, rng))
    return replace(thing, place=rng.choice([p for p in PLACES if p not in taken]))


def _other(values: tuple[str, ...], value: str, rng: random.Random) -> str:
    return rng.choice([v for v in values if v != value])


def opens(donor: Scene, target: Scene) -> bool:
    """Returns whether the target names something whose layout the donor does not show."""
    if len(target.things) > len(donor.things):
        return True
    if target.texture not in ("plain", donor.texture):
        return True
    if len(target.things) < len(donor.things):
        return False
    return any(t.place not in (None, d.place) for d, t in zip(donor.things, target.things, strict=True))
