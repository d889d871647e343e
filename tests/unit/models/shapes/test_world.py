"""Tests of the world: scenes, splits, layouts and rendering."""

import itertools
import math
import random
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.shapes.edits import EDITS, draw_edit, opens
from models.shapes.layout import SPECK_SHARE, draw_layout
from models.shapes.render import centres, render, unit_rgb
from models.shapes.world import (
    COLOURS,
    PLACES,
    SHADES,
    SIDE,
    Scene,
    Split,
    Thing,
    combination,
    draw_scene,
    draw_scenes,
    find_split,
    objects_of,
    parse_scene,
    scene_table,
)

SEEDS = st.integers(0, 2**31)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_colours_are_far_apart() -> None:
    assert min(math.dist(a, b) for a, b in itertools.combinations(COLOURS.values(), 2)) >= 87


def test_shades_differ_from_every_colour() -> None:
    for name, shade in SHADES.items():
        assert min(math.dist(shade, c) for other, c in COLOURS.items() if other != name) >= 60, name
        assert math.dist(shade, COLOURS[name]) >= 60, name


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_table_rows_parse_back_to_their_scenes(seed: int) -> None:
    scenes = draw_scenes("train", 20, seed)
    assert [parse_scene(row) for row in scene_table(scenes)] == scenes


def test_splits_are_disjoint_and_have_the_stated_shares() -> None:
    keys = [str(i) for i in range(20_000)]
    shares = {s: sum(find_split(k) == s for k in keys) / len(keys) for s in ("train", "calibration", "test")}
    assert shares == pytest.approx({"train": 0.7, "calibration": 0.1, "test": 0.2}, abs=0.02)


@pytest.mark.parametrize("split", ["train", "calibration", "test"])
def test_drawn_scenes_belong_to_their_split(split: str) -> None:
    for scene in draw_scenes(split, 50, 0):  # type: ignore[arg-type]
        assert all(find_split(combination(scene, t)) == split for t in scene.things)
        assert all(t.colour != scene.background for t in scene.things)
        named = [t.place for t in scene.things if t.place]
        assert len(named) == len(set(named))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_objects_are_where_their_prompt_places_them(seed: int) -> None:
    table = scene_table(draw_scenes("train", 40, seed))
    middle = draw_layout(table, generator(seed)).middle
    place = objects_of(table)[..., 4]
    for name, (x, y) in PLACES.items():
        chosen = middle[place == list(PLACES).index(name)]
        assert ((chosen[:, 0] - SIDE / 2) * x > 0).all(), name
        assert ((chosen[:, 1] - SIDE / 2) * y > 0).all(), name


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_centroids_stay_inside_the_frame(seed: int) -> None:
    table = scene_table(draw_scenes("train", 40, seed))
    where = centres(draw_layout(table, generator(seed)))
    exists = objects_of(table)[..., 0] >= 0
    assert (where[exists] > 0).all()
    assert (where[exists] < SIDE).all()


def test_layout_varies_with_the_seed_and_repeats_with_it() -> None:
    table = scene_table(draw_scenes("train", 8, 0))
    one, same, other = (draw_layout(table, generator(s)) for s in (1, 1, 2))
    assert torch.equal(one.middle, same.middle)
    assert torch.equal(render(table, one), render(table, same))
    assert (one.middle - other.middle).abs().max() > 4


def test_speck_appears_in_the_stated_share_of_videos() -> None:
    table = scene_table(draw_scenes("train", 1, 0)).expand(2000, -1)
    assert float(draw_layout(table, generator(0)).speck.mean()) == pytest.approx(SPECK_SHARE, abs=0.04)


def test_edited_scene_keeps_the_rest_of_its_layout() -> None:
    thing = Thing("circle", "red", "left", "large")
    other = Thing("square", "blue", "up", "small")
    donor = scene_table([Scene("white", "striped", (thing, other))])
    target = scene_table([Scene("white", "striped", (thing, Thing("square", "blue", "down", "small")))])
    one = draw_layout(donor, generator(3))
    edited = draw_layout(target, generator(3), like=donor)
    assert torch.equal(one.middle[:, 0], edited.middle[:, 0])
    assert torch.equal(one.travel[:, 0], edited.travel[:, 0])
    for field in ("angle", "phase", "period", "speck_middle", "front"):
        assert torch.equal(getattr(one, field), getattr(edited, field)), field


def test_rendered_objects_have_their_area_and_colour() -> None:
    scene = Scene("white", "plain", (Thing("triangle", "black", "still", "large"),))
    table = scene_table([scene])
    layout = draw_layout(table, generator(0))
    object.__setattr__(layout, "speck", torch.zeros(1))
    video = render(table, layout)
    white, black = unit_rgb(COLOURS)[list(COLOURS).index("white")], unit_rgb(COLOURS)[-1]
    area = ((white.view(3, 1, 1) - video[0, :, 0]) / (white - black).view(3, 1, 1)).mean(0).sum()
    assert float(area) == pytest.approx(math.pi * float(layout.radius[0, 0]) ** 2, rel=0.02)


def test_small_videos_show_the_same_scene() -> None:
    table = scene_table(draw_scenes("train", 6, 0))
    layout = draw_layout(table, generator(0))
    full, small = render(table, layout), render(table, layout, 32)
    folded = torch.nn.functional.avg_pool3d(full, (1, 2, 2))
    assert small.shape == (6, 3, 16, 32, 32)
    assert float((folded - small).abs().mean()) < 0.03


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, edit=st.sampled_from(EDITS))
def test_edits_change_one_respect(seed: int, edit: str) -> None:
    scene = draw_scenes("train", 1, seed)[0]
    edited = draw_edit(scene, edit, "train", random.Random(seed))  # type: ignore[arg-type]
    if edited is None:
        return
    if edit == "count":
        assert abs(len(edited.things) - len(scene.things)) == 1
        return
    before = [(scene.background, scene.texture), *scene.things]
    after = [(edited.background, edited.texture), *edited.things]
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_adding_what_the_donor_does_not_show_opens() -> None:
    red, blue = Thing("circle", "red", "left", "large"), Thing("square", "blue", "up", "small")
    plain, striped = Scene("white", "plain", (red,)), Scene("white", "striped", (red,))
    assert opens(plain, striped)
    assert not opens(striped, plain)
    assert opens(plain, Scene("white", "plain", (red, blue)))
    assert not opens(Scene("white", "plain", (red, blue)), plain)
    assert opens(plain, Scene("white", "plain", (Thing("circle", "red", "left", "large", "upper left"),)))
    assert not opens(plain, Scene("black", "plain", (red,)))


def test_unknown_split_is_rejected() -> None:
    with pytest.raises(ValueError, match="split must be one of train, calibration, test, not 'eval'"):
        draw_scene(cast(Split, "eval"), random.Random(0), 1)
