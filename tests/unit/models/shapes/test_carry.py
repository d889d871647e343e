"""Tests of layouts carried over from a donor's video."""

from dataclasses import replace

import pytest
import torch

from models.shapes.carry import carry_drawn, carry_layout, match_tables
from models.shapes.layout import draw_layout
from models.shapes.render import render
from models.shapes.world import Scene, Thing, scene_table
from models.shapes.yardstick.kept import compare_layouts
from models.shapes.yardstick.reader import read

DONOR = Scene(
    "white",
    "striped",
    (Thing("circle", "red", "left", "large"), Thing("square", "blue", "up", "small")),
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def first(**changes: str) -> Scene:
    return replace(DONOR, things=(replace(DONOR.things[0], **changes), DONOR.things[1]))


edits = pytest.mark.parametrize(
    "target",
    [
        first(colour="green"),
        first(shape="square"),
        first(size="small"),
        first(motion="right"),
        replace(DONOR, background="yellow"),
        replace(DONOR, things=DONOR.things[1:]),
        replace(DONOR, texture="plain"),
    ],
)


@edits
def test_carried_layout_keeps_what_the_edit_leaves(target: Scene) -> None:
    table = scene_table([DONOR])
    donor = read(render(table, draw_layout(table, generator(4)))[0])
    layout = carry_layout(donor, DONOR, target, generator(1))
    assert layout is not None
    edited = read(render(scene_table([target]), layout)[0])
    assert compare_layouts(donor, edited, DONOR, target)["all"]


def test_donor_that_does_not_show_its_scene_is_refused() -> None:
    table = scene_table([DONOR])
    donor = read(render(table, draw_layout(table, generator(4)))[0])
    assert carry_layout(donor, first(colour="green"), DONOR, generator(1)) is None


@edits
def test_drawn_layout_keeps_what_the_edit_leaves(target: Scene) -> None:
    before, after = scene_table([DONOR]), scene_table([target])
    layout, drawn = draw_layout(before, generator(4)), draw_layout(after, generator(5))
    carried = carry_drawn(before, after, layout, drawn, match_tables(before, after))
    donor, edited = read(render(before, layout)[0]), read(render(after, carried)[0])
    assert compare_layouts(donor, edited, DONOR, target)["all"]
