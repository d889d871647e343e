"""Carries a donor's layout over to an edited scene, as read from the donor's video."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from models.shapes.layout import Layout, draw_layout, middle_bounds
from models.shapes.world import MOTIONS, SIZES, Scene, Thing, scene_table
from models.shapes.yardstick.comparison import compare, match
from models.shapes.yardstick.kept import match_scenes
from models.shapes.yardstick.reader import Reading

_SLOW: Final = 4.0  # pixels; a path of an object that stands still is shorter


def carry_layout(reading: Reading, donor: Scene, target: Scene, generator: torch.Generator) -> Layout | None:
    """Returns the layout of the target's scene, of one video, that keeps what the donor's video shows.

    What the donor does not show is drawn at random. Objects whose size, shape or motion changes are moved as
    little as they must to stay in the frame.

    Args:
        reading: Donor's video as read.
        donor, target: Scenes of the two prompts.

    Returns:
        None if the donor's video does not show its own scene.
    """
    if not compare(reading.scene, donor)["all"]:
        return None
    table = scene_table([target])
    layout = draw_layout(table, generator)
    _, matched = match(reading.scene.things, donor.things)
    middle, travel, radius = layout.middle.clone(), layout.travel.clone(), layout.radius.clone()
    depth = []  # index of the fitted object, which is higher in front, for each object of the target
    for number, d in enumerate(match_scenes(donor, target)):
        if d is None:
            depth.append(len(reading.objects))
            continue
        before, after = donor.things[d], target.things[number]
        shown = reading.order[matched[d]]
        depth.append(shown)
        path = reading.objects.path[shown]
        radius[0, number] = reading.objects.radius[shown] * SIZES[after.size] / SIZES[before.size]
        travel[0, number] = _turn(path[2:], before, after, layout.travel[0, number])
        middle[0, number] = path[:2]
    low, high = middle_bounds(table, radius, travel)
    middle = torch.minimum(torch.maximum(middle, low), torch.maximum(low, high))
    layout = replace(layout, middle=middle, travel=travel, radius=radius)
    if len(depth) == 2:
        layout = replace(layout, front=torch.tensor([int(depth[1] > depth[0])]))
    seen = reading.layout
    if target.texture == donor.texture:
        layout = replace(layout, period=seen.period, angle=seen.angle, phase=seen.phase)
    return replace(layout, speck=seen.speck, speck_middle=seen.speck_middle, speck_travel=seen.speck_travel)


def _turn(travel: Tensor, before: Thing, after: Thing, fresh: Tensor) -> Tensor:
    """Returns the travel [2] of an object whose motion may change: the same turn from the named direction."""
    if after.motion == before.motion:
        return travel
    if "still" in (before.motion, after.motion) or float(travel.norm()) < _SLOW:
        return fresh
    old, new = (torch.tensor(MOTIONS[m]) for m in (before.motion, after.motion))
    along, across = travel @ old, travel @ torch.stack([-old[1], old[0]])
    return along * new + across * torch.stack([-new[1], new[0]])
