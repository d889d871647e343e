"""Tests of the reader by best-fit rendering."""

import random

import pytest
import torch
from torch import Tensor

from models.shapes.layout import Layout, draw_layout
from models.shapes.render import render, unit_rgb
from models.shapes.world import (
    COLOURS,
    FRAMES,
    MOTIONS,
    PLACES,
    SHAPES,
    SIDE,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    draw_scene,
    scene_table,
)
from models.shapes.yardstick.comparison import Wanted, WantedThing, compare
from models.shapes.yardstick.corrupt import blur, pass_codec
from models.shapes.yardstick.objects import Objects
from models.shapes.yardstick.outlines import centres, outline_share
from models.shapes.yardstick.reader import compose, read


def draw_video(scene: Scene, seed: int) -> tuple[Tensor, Layout]:
    table = scene_table([scene])
    layout = draw_layout(table, torch.Generator().manual_seed(seed))
    return render(table, layout)[0], layout


def draw_objects(things: list[tuple[str, str, float, float, float]]) -> Objects:
    """Returns still large objects of a shape, colour, x, y, and travel to the right."""
    return Objects(
        torch.tensor([SHAPES.index(s) for s, *_ in things], dtype=torch.int64),
        torch.tensor([list(COLOURS).index(c) for _, c, *_ in things], dtype=torch.int64),
        torch.tensor([[x, y, dx, 0.0] for _, _, x, y, dx in things]).view(-1, 4),
        torch.full((len(things),), SIZES["large"]),
    )


def paint(things: list[tuple[str, str, float, float, float]], background: str = "white") -> Tensor:
    objects = draw_objects(things)
    video = unit_rgb(COLOURS)[list(COLOURS).index(background)].view(3, 1, 1, 1).expand(3, FRAMES, SIDE, SIDE)
    shares = outline_share(objects.shape, centres(objects.path), objects.radius)
    for share, colour in zip(shares, unit_rgb(COLOURS)[objects.colour], strict=True):
        video = torch.lerp(video, colour.view(3, 1, 1, 1), share)
    return video.contiguous()


@pytest.mark.parametrize("objects", [1, 2])
def test_reader_finds_every_attribute_and_the_layout_after_the_codec(objects: int) -> None:
    rng = random.Random(objects)
    for seed in range(8):
        scene = draw_scene("test", rng, objects)
        video, layout = draw_video(scene, seed)
        reading = read(pass_codec(video))
        right = compare(reading.scene, scene)
        assert right["all"], (right, scene, reading.scene)
        for number in range(objects):
            distance = (reading.objects.path[:, :2] - layout.middle[0, number]).norm(dim=1)
            i = int(distance.argmin())
            assert float(distance[i]) < 0.5
            assert (reading.objects.path[i, 2:] - layout.travel[0, number]).norm() < 1.0
            assert (reading.objects.radius[i] - layout.radius[0, number]).abs() < 0.4
        assert float((reading.best_fit - video).abs().mean()) < 0.01


def test_layout_of_a_reading_renders_the_best_fit() -> None:
    for seed in range(4):
        video, _ = draw_video(draw_scene("train", random.Random(seed), 2), seed)
        reading = read(video)
        table = scene_table([reading.scene])
        torch.testing.assert_close(render(table, reading.layout)[0], reading.best_fit, atol=1e-4, rtol=0)


@pytest.mark.parametrize("texture", TEXTURES)
def test_reader_finds_no_object_in_an_empty_background(texture: str) -> None:
    video, _ = draw_video(Scene("green", texture, ()), 3)
    reading = read(video)
    assert reading.scene == Scene("green", texture, ())
    assert reading.layout.middle.shape == (1, 2, 2)


def test_reader_counts_three_objects() -> None:
    video = paint(
        [("circle", "red", 14, 14, 12), ("square", "blue", 44, 30, 0), ("triangle", "black", 20, 50, 14)]
    )
    shown = read(video).scene
    assert [(t.shape, t.colour) for t in shown.things] == [
        ("circle", "red"),
        ("triangle", "black"),
        ("square", "blue"),
    ]
    assert [t.motion for t in shown.things] == ["right", "right", "still"]


@pytest.mark.parametrize("gap", [15.0, 17.0, 20.0])
def test_reader_separates_touching_objects_of_one_colour(gap: float) -> None:
    video = paint([("circle", "red", 22, 30, 0), ("circle", "red", 22 + gap, 32, 0)])
    shown = read(video).scene
    assert [(t.shape, t.colour, t.size) for t in shown.things] == [("circle", "red", "large")] * 2


def test_reader_finds_which_object_is_in_front() -> None:
    for first, second in (("red", "blue"), ("blue", "red")):
        reading = read(paint([("square", first, 26, 30, 0), ("circle", second, 36, 34, 0)]))
        assert [list(COLOURS)[c] for c in reading.objects.colour.tolist()] == [first, second]


def test_reader_reads_blurred_videos() -> None:
    rng, right = random.Random(5), []
    for seed in range(10):
        scene = draw_scene("train", rng, 1 + seed % 2)
        video, _ = draw_video(scene, seed)
        right.append(compare(read(blur(video, 1.5)).scene, scene)["all"])
    assert sum(right) >= 9


def test_reader_does_not_take_a_faint_object_for_an_object() -> None:
    empty, full = paint([]), paint([("circle", "red", 30, 30, 0)])
    assert read(torch.lerp(empty, full, 0.15)).scene.things == ()


def test_reader_accepts_any_finite_video() -> None:
    g = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1, 1, SIDE).expand(3, FRAMES, SIDE, SIDE)
    blocks = torch.rand(3, FRAMES, 8, 8, generator=g).repeat_interleave(8, 2).repeat_interleave(8, 3) * 2 - 1
    noise = torch.randn(3, FRAMES, SIDE, SIDE, generator=g)
    for video in (noise, 5 * noise, ramp, blocks, torch.zeros_like(noise), torch.full_like(noise, 9.0)):
        reading = read(video)
        assert reading.best_fit.isfinite().all()
        assert all(t.motion in MOTIONS and t.place in PLACES for t in reading.scene.things)


def test_reader_rejects_other_shapes_and_nan() -> None:
    with pytest.raises(ValueError, match="video: must be"):
        read(torch.zeros(3, FRAMES, SIDE, SIDE + 1))
    with pytest.raises(ValueError, match="NaN"):
        read(torch.full((3, FRAMES, SIDE, SIDE), torch.nan))


def test_compose_shows_later_objects_in_front() -> None:
    reading = read(paint([]))
    objects = draw_objects([("square", "red", 30, 30, 0), ("square", "blue", 32, 32, 0)])
    shown = compose(reading.background, objects, None)[:, 0, 31, 31]
    torch.testing.assert_close(shown, unit_rgb(COLOURS)[list(COLOURS).index("blue")])


def test_compare_ignores_the_order_of_objects_and_open_attributes() -> None:
    one = Thing("circle", "red", "left", "small", "upper left")
    two = Thing("square", "blue", "still", "large", "lower right")
    shown = Scene("pink", "dotted", (one, two))
    assert compare(shown, Scene("pink", "dotted", (two, one)))["all"]
    assert compare(shown, Wanted(None, None, [WantedThing(shape="square"), WantedThing()]))["all"]
    wrong = compare(
        shown, Wanted("pink", "plain", [WantedThing(shape="square"), WantedThing(colour="green")])
    )
    assert [k for k, right in wrong.items() if not right] == ["texture", "colour", "all"]


def test_compare_reports_missing_and_surplus_objects() -> None:
    one = Thing("circle", "red", "left", "small")
    two = Thing("square", "blue", "still", "large")
    missing = compare(Scene("pink", "plain", (one,)), Scene("pink", "plain", (one, two)))
    assert [k for k, right in missing.items() if right] == ["background", "texture"]
    surplus = compare(Scene("pink", "plain", (one, two)), Scene("pink", "plain", (two,)))
    assert [k for k, right in surplus.items() if not right] == ["count", "all"]


def test_compare_matches_a_named_place() -> None:
    shown = Scene("pink", "plain", (Thing("circle", "red", "left", "small", "upper left"),))
    for place, right in (("upper left", True), (None, True), ("lower left", False)):
        wanted = Scene("pink", "plain", (Thing("circle", "red", "left", "small", place),))
        assert compare(shown, wanted)["place"] is right
