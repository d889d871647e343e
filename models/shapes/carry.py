"""Carries a donor's layout over to an edited scene: as read from the donor's video, or as drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from models.shapes.layout import Layout, draw_layout, middle_bounds
from models.shapes.world import (
    MAX_OBJECTS,
    MOTIONS,
    SIZES,
    Scene,
    Thing,
    objects_of,
    parse_scene,
    scene_table,
)
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


def match_tables(donors: Tensor, targets: Tensor) -> Tensor:
    """Returns for each object of each target the donor's object that it comes from, -1 for none, [n, 2]."""
    matches = torch.full((len(donors), MAX_OBJECTS), -1, device="cpu")
    for row, donor, target in zip(matches, donors.cpu(), targets.cpu(), strict=True):
        for number, match_ in enumerate(match_scenes(parse_scene(donor), parse_scene(target))):
            row[number] = -1 if match_ is None else match_
    return matches


def carry_drawn(donor: Tensor, target: Tensor, layout: Layout, drawn: Layout, matches: Tensor) -> Layout:
    """Returns the layouts of edited scenes that keep drawn ones, by the rules of `carry_layout`.

    Args:
        donor, target: Rows of `scene_table`, [B, COLUMNS].
        layout: Layouts of the donors.
        drawn: Layouts drawn for the targets, which decide what the donors do not show.
        matches: The targets' objects in the donors, see `match_tables`.
    """
    kept, index = matches >= 0, matches.clamp_min(0)
    pairs = index[..., None].expand(-1, -1, 2)
    after = objects_of(target)
    before = objects_of(donor).gather(1, index[..., None].expand(-1, -1, after.shape[-1]))
    sizes = torch.tensor(list(SIZES.values()))
    growth = sizes[after[..., 3].clamp_min(0)] / sizes[before[..., 3].clamp_min(0)]
    radius = torch.where(kept, layout.radius.gather(1, index) * growth, drawn.radius)
    turned = _turn_drawn(
        layout.travel.gather(1, pairs), before[..., 2].clamp_min(0), after[..., 2].clamp_min(0), drawn.travel
    )
    travel = torch.where(kept[..., None], turned, drawn.travel)
    middle = torch.where(kept[..., None], layout.middle.gather(1, pairs), drawn.middle)
    low, high = middle_bounds(target, radius, travel)
    same = donor[:, 1] == target[:, 1]
    return Layout(
        middle=torch.minimum(torch.maximum(middle, low), torch.maximum(low, high)),
        travel=travel,
        radius=radius,
        front=torch.where(kept.all(1), (matches == layout.front[:, None]).long().argmax(1), drawn.front),
        period=torch.where(same, layout.period, drawn.period),
        angle=torch.where(same, layout.angle, drawn.angle),
        phase=torch.where(same[:, None], layout.phase, drawn.phase),
        speck=layout.speck,
        speck_middle=layout.speck_middle,
        speck_travel=layout.speck_travel,
    )


def _turn_drawn(travel: Tensor, before: Tensor, after: Tensor, fresh: Tensor) -> Tensor:
    """Returns the travels [B, 2, 2] of objects whose motions, indices [B, 2], may change: see `_turn`."""
    directions = torch.tensor(list(MOTIONS.values()), dtype=travel.dtype)
    still = list(MOTIONS).index("still")
    old, new = directions[before], directions[after]
    along = (travel * old).sum(-1, keepdim=True)
    across = (travel * _turn_left(old)).sum(-1, keepdim=True)
    turned = along * new + across * _turn_left(new)
    unknown = (before == still) | (after == still) | (travel.norm(dim=-1) < _SLOW)
    changed = torch.where(unknown[..., None], fresh, turned)
    return torch.where((before == after)[..., None], travel, changed)


def _turn_left(vector: Tensor) -> Tensor:
    return torch.stack([-vector[..., 1], vector[..., 0]], -1)
