"""Measures whether an edited video keeps the donor's layout where the prompt did not change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor

from models.shapes.layout import EXTENTS
from models.shapes.world import SHAPES, SIDE, Scene, Thing
from models.shapes.yardstick.reader import Reading

PLACE_TOLERANCE: Final = 2.0  # pixels
HEADING_TOLERANCE: Final = math.radians(10)  # the world draws headings from 50 degrees
# Correlation of the two textures. For stripes of 16 pixels a displacement by 2 pixels leaves 0.5.
MIN_CORRELATION: Final = 0.5
KEPT_FIELDS: Final = ("place", "heading", "texture", "objects")
_ATTRIBUTES: Final = ("shape", "colour", "motion", "size")


def compare_layouts(
    donor: Reading, edited: Reading, donor_scene: Scene, target_scene: Scene
) -> dict[str, bool]:
    """Returns for each of KEPT_FIELDS whether the edited video keeps the donor's layout, and `all`.

    Objects that both prompts contain must be present (`objects`), at the donor's place unless the target
    names another place (`place`), and with the donor's heading unless the motion was edited (`heading`). The
    texture's position must be the donor's unless the texture was edited (`texture`). An object that the
    donor's video does not show, and what the edit opens, count as kept: there is nothing to keep.

    A place is kept if the middle of the path is within PLACE_TOLERANCE of the donor's. If size, shape or
    motion were edited, the world itself moves the object, because its path must stay inside the frame: then
    any place between the donor's and the one that the world computes from the same random values is right.
    """
    pairs = match_scenes(donor_scene, target_scene)
    first = _assign(donor, donor_scene.things, None)
    wanted = [None if d is None or first[d] is None else donor.objects.path[first[d]] for d in pairs]
    second = _assign(edited, target_scene.things, wanted)
    kept = {"place": True, "heading": True, "objects": True}
    for target, d in enumerate(pairs):
        if d is None or (i := first[d]) is None:
            continue
        if (j := second[target]) is None:
            kept["objects"] = False
            continue
        before, after = donor_scene.things[d], target_scene.things[target]
        if after.place in (None, before.place):
            kept["place"] &= _same_place(donor, i, edited, j, before, after)
        if after.motion == before.motion != "still":
            kept["heading"] &= _angle(donor.objects.path[i], edited.objects.path[j]) <= HEADING_TOLERANCE
    texture = target_scene.texture != donor_scene.texture or _same_texture(donor, edited)
    kept = {"place": kept["place"] and kept["objects"], "heading": kept["heading"] and kept["objects"],
            "texture": texture, "objects": kept["objects"]}  # fmt: skip
    return kept | {"all": all(kept.values())}


def match_scenes(donor: Scene, target: Scene) -> list[int | None]:
    """Returns for each object of the target the object of the donor that it comes from, or None if it is new.

    Objects are matched so that most attributes agree; of equal matches, that of the same order counts.
    """
    n, m = len(donor.things), len(target.things)
    slots: list[int | None] = [*range(n), *[None] * max(0, m - n)]

    def agreement(chosen: Iterable[int | None]) -> int:
        pairs = [(donor.things[d], t) for d, t in zip(chosen, target.things, strict=True) if d is not None]
        return sum(getattr(a, f) == getattr(b, f) for a, b in pairs for f in (*_ATTRIBUTES, "place"))

    # A new object has agreement 0, so an object that keeps anything is never taken for a new one.
    return list(max(itertools.permutations(slots, m), key=agreement))


def _assign(
    reading: Reading, things: Sequence[Thing], near: Sequence[Tensor | None] | None
) -> list[int | None]:
    """Returns the fitted object that shows each of a prompt's objects, or None.

    An object is shown if shape or colour agree. Of several, the one with most attributes and the nearest to
    the path `near` is taken.
    """
    shown = [reading.scene.things[reading.order.index(i)] for i in range(len(reading.objects))]
    slots = [*range(len(shown)), *[None] * len(things)]

    def quality(chosen: Iterable[int | None]) -> float:
        total = 0.0
        for number, (i, thing) in enumerate(zip(chosen, things, strict=True)):
            if i is None:
                continue
            agreed = sum(getattr(shown[i], f) == getattr(thing, f) for f in _ATTRIBUTES)
            if thing.colour != shown[i].colour and thing.shape != shown[i].shape:
                return -math.inf
            place = near[number] if near else None
            distance = 0.0 if place is None else float((reading.objects.path[i, :2] - place[:2]).norm())
            total += 1 + agreed - min(distance / SIDE, 0.99)
        return total

    return list(max(itertools.permutations(slots, len(things)), key=quality))


def _bounds(shape: str, radius: float, travel: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the lowest and highest middle (x, y) of a path inside the frame."""
    side, above, below = (e * radius for e in EXTENTS[SHAPES.index(shape)])
    reach = travel.abs() / 2
    low = torch.tensor([side, above]) + reach
    high = SIDE - torch.tensor([side, below]) - reach
    return low, torch.maximum(high, low + 1e-3)


def _same_place(donor: Reading, i: int, edited: Reading, j: int, before: Thing, after: Thing) -> bool:
    """Returns whether object j of the edited video is where the donor's object i was."""
    old, new = donor.objects.path[i], edited.objects.path[j]
    expected = old[:2]
    if any(getattr(before, f) != getattr(after, f) for f in ("shape", "size", "motion")):
        low, high = _bounds(before.shape, float(donor.objects.radius[i]), old[2:])
        to_low, to_high = _bounds(after.shape, float(edited.objects.radius[j]), new[2:])
        share = ((old[:2] - low) / (high - low)).clamp(0, 1)
        expected = to_low + share * (to_high - to_low)
    nearest = torch.minimum(torch.maximum(new[:2], torch.minimum(old[:2], expected)),
                            torch.maximum(old[:2], expected))  # fmt: skip
    return float((new[:2] - nearest).norm()) <= PLACE_TOLERANCE


def _angle(first: Tensor, second: Tensor) -> float:
    """Returns the angle between the travels of two paths [4]."""
    a, b = (math.atan2(float(p[3]), float(p[2])) for p in (first, second))
    return abs((a - b + math.pi) % (2 * math.pi) - math.pi)


def _same_texture(donor: Reading, edited: Reading) -> bool:
    """Returns whether both backgrounds have the same texture at the same position.

    Textures are compared as pictures, so that equivalent angles and phases are equal.
    """
    if donor.background.texture != edited.background.texture:
        return False
    if not donor.background.texture:
        return True
    pair = torch.stack([donor.background.share.flatten(), edited.background.share.flatten()])
    return float(torch.corrcoef(pair)[0, 1]) >= MIN_CORRELATION
