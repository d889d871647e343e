"""Tests that the analyzer reads scenes from pixels, and reports the faults of wrong videos."""

import io
import random
from collections.abc import Callable

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models.movingshapes.analyzer import FIELDS, accuracy, compare, read_scene
from models.movingshapes.world import BACKGROUNDS, COLOURS, Scene, Thing, render, scene_table, things
from services.denoiser.codec.mp4 import encode_mp4, to_frames

a_thing = st.sampled_from(things())
a_scene = st.builds(
    Scene, st.sampled_from(list(BACKGROUNDS)), st.one_of(st.tuples(a_thing), st.tuples(a_thing, a_thing))
)


def draw(count: int, seed: int) -> list[Scene]:
    """Draws scenes, alternately of one and of two objects."""
    rng, every = random.Random(seed), things()
    return [
        Scene(rng.choice(list(BACKGROUNDS)), tuple(rng.choices(every, k=1 + i % 2))) for i in range(count)
    ]


def video(scene: Scene, seed: int = 0) -> Tensor:
    return render(scene_table([scene]), torch.Generator().manual_seed(seed))[0]


def noisy(v: Tensor) -> Tensor:
    return v + 0.2 * torch.randn(v.shape, generator=torch.Generator().manual_seed(1))


def blurred(v: Tensor) -> Tensor:
    """Blurs over one pixel (Gaussian, sigma 1) and over two frames."""
    kernel = torch.exp(-(torch.arange(-4.0, 5) ** 2) / 2)
    kernel = (kernel[:, None] * kernel / kernel.sum() ** 2).view(1, 1, 9, 9)
    planes = F.pad(v.flatten(0, 2)[:, None], (4, 4, 4, 4), mode="replicate")
    soft = F.conv2d(planes, kernel).view(v.shape)
    return (soft + torch.cat([soft[:, :, :1], soft[:, :, :-1]], dim=2)) / 2


def ghosted(v: Tensor) -> Tensor:
    """Blends in a fifth of another time and place, and adds a little noise."""
    mixed = torch.lerp(v, v.roll((17, -17), (3, 4)).flip(2), 0.2)
    return mixed + 0.05 * torch.randn(v.shape, generator=torch.Generator().manual_seed(2))


def encoded_as_mp4(v: Tensor) -> Tensor:
    out = []
    for one in v:
        file = io.BytesIO(encode_mp4(to_frames(one, upscale=4), fps=8))
        with av.open(file, "r") as container:
            frames = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
        big = torch.stack(frames).permute(3, 0, 1, 2).float() / 127.5 - 1
        out.append(F.avg_pool2d(big, 4))
    return torch.stack(out)


@pytest.mark.parametrize(
    ("change", "count"),
    [(lambda v: v, 100), (noisy, 100), (blurred, 100), (lambda v: noisy(blurred(v)), 60), (ghosted, 20),
     (encoded_as_mp4, 20)],
    ids=["clean", "noisy", "blurred", "blurred-and-noisy", "ghosted", "mp4"],
)  # fmt: skip
def test_rendered_scenes_are_read_back(change: Callable[[Tensor], Tensor], count: int) -> None:
    scenes = draw(count, seed=count)
    videos = change(render(scene_table(scenes), torch.Generator().manual_seed(count)))
    assert accuracy(videos, scenes) == dict.fromkeys((*FIELDS, "all"), 1.0)


@settings(max_examples=30)
@given(a_scene, st.integers(0, 2**31))
def test_any_scene_is_read_back_from_any_seed(scene: Scene, seed: int) -> None:
    assert read_scene(video(scene, seed)) == scene


def test_videos_of_other_scenes_score_low() -> None:
    scenes = draw(60, seed=4)
    videos = render(scene_table(scenes), torch.Generator().manual_seed(4))
    scores = accuracy(videos, random.Random(5).sample(scenes, len(scenes)))
    assert scores["all"] <= 0.05
    assert scores["background"] < 0.5
    assert scores["colour"] < 0.4
    assert scores["motion"] < 0.4
    assert scores["shape"] < 0.5
    assert scores["size"] < 0.6


A, B = Thing("circle", "yellow", "up", "small"), Thing("square", "purple", "left", "large")
C = Thing("triangle", "yellow", "still", "large")


@pytest.mark.parametrize("colour", COLOURS)
def test_frame_filled_with_an_object_colour_contains_no_object(colour: str) -> None:
    plain = (torch.tensor(COLOURS[colour]) / 127.5 - 1).view(3, 1, 1, 1).repeat(1, 16, 48, 48)
    assert read_scene(plain).things == read_scene(noisy(plain)).things == ()


def test_noise_contains_no_object() -> None:
    shown = read_scene(noisy(torch.full((3, 16, 48, 48), -0.9)))
    assert shown == Scene("black", ())
    right = compare(shown, Scene("black", (A,)))
    assert [f for f, holds in right.items() if holds] == ["background"]


def test_third_object_is_counted() -> None:
    pair, single = video(Scene("navy", (A, B))), video(Scene("navy", (C,)))
    third = single.roll((-16, 16), (2, 3))  # to the upper right
    back = single[:, :1, :1, :1]
    shown = read_scene(torch.where(third == back, pair, third))
    assert len(shown.things) == 3
    assert {A, B, C} == set(shown.things)
    right = compare(shown, Scene("navy", (A, B)))
    assert [f for f, holds in right.items() if not holds] == ["count", "all"]


def test_object_that_vanishes_early_is_not_counted() -> None:
    shown = video(Scene("white", (A, B)))
    assert read_scene(shown).things == (A, B)
    shown[:, 3:, :, 20:] = shown[:, :1, :1, :1]  # the right side, from the fourth frame on
    assert read_scene(shown).things == (A,)


def test_objects_that_touch_temporarily_remain_two() -> None:
    shown = video(Scene("white", (A, A)))
    yellow = torch.tensor(COLOURS["yellow"]) / 127.5 - 1
    shown[:, 8:, 10:38, 10:38] = yellow.view(3, 1, 1, 1)
    assert read_scene(shown).things == (A, A)


def test_order_and_missing_objects_are_compared() -> None:
    scene = Scene("gray", (A, B))
    assert all(compare(scene, scene).values())
    swapped = compare(Scene("gray", (B, A)), scene)
    assert [f for f, holds in swapped.items() if holds] == ["background", "count"]
    missing = compare(Scene("gray", (A,)), scene)
    assert [f for f, holds in missing.items() if holds] == ["background"]
    extra = compare(scene, Scene("gray", (B,)))
    assert [f for f, holds in extra.items() if not holds] == ["count", "all"]
    half = compare(Scene("gray", (A, Thing("square", "purple", "right", "large"))), scene)
    assert [f for f, holds in half.items() if not holds] == ["motion", "all"]


def test_motion_needs_at_least_half_the_distance() -> None:
    v = video(Scene("black", (Thing("circle", "red", "right", "large"),)))
    slow = v[:, (torch.arange(16) * 0.3).long()]
    assert read_scene(slow).things[0].motion == "still"
    assert read_scene(v.flip(1)).things[0].motion == "left"


@pytest.mark.parametrize(
    "bad", [torch.zeros(16, 3, 48, 48), torch.zeros(3, 48, 48), torch.full((3, 16, 48, 48), torch.nan)]
)
def test_invalid_video_is_rejected(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^video: "):
        read_scene(bad)
