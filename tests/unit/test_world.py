"""The procedural world and the readback that judges the model on it."""

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from models.movingshapes.readback import accuracy, read_scene
from models.movingshapes.world import (
    BACKGROUNDS,
    COLOURS,
    attribute_table,
    caption,
    held_out,
    plain_caption,
    render,
    scenes,
)

ALL = scenes()


def test_scenes_and_split() -> None:
    assert len(set(ALL)) == len(ALL) == 1050
    kept = [s for s in ALL if not held_out(s)]
    assert 0.7 < len(kept) / len(ALL) < 0.9
    for field in ("shape", "colour", "background", "motion", "size"):  # no single value is unseen
        assert {getattr(s, field) for s in kept} == {getattr(s, field) for s in ALL}


def test_no_two_colours_look_alike() -> None:
    palette = torch.tensor([*COLOURS.values(), *BACKGROUNDS.values()], dtype=torch.float32)
    distance = torch.cdist(palette, palette) + 1000 * torch.eye(len(palette))
    assert distance.min() > 80


@given(st.sampled_from(ALL), st.integers(0, 2**31))
def test_a_video_shows_its_scene(scene: object, seed: int) -> None:
    index = ALL.index(scene)  # type: ignore[arg-type]
    video = render(attribute_table([ALL[index]]), torch.Generator().manual_seed(seed))[0]
    assert video.shape == (3, 8, 32, 32)
    assert video.min() >= -1
    assert video.max() <= 1
    assert read_scene(video) == scene


def test_readback_bears_the_noise_of_a_sampler() -> None:
    some = random.Random(3).sample(ALL, 40)
    generator = torch.Generator().manual_seed(3)
    videos = render(attribute_table(some), generator)
    noisy = videos + 0.2 * torch.randn(videos.shape, generator=generator)
    assert accuracy(noisy, some)["all"] >= 0.95


def test_readback_knows_wrong_from_right() -> None:
    some = random.Random(4).sample(ALL, 40)
    videos = render(attribute_table(some), torch.Generator().manual_seed(4))
    scores = accuracy(videos, random.Random(5).sample(ALL, 40))
    assert scores["all"] < 0.1
    assert scores["colour"] < 0.5
    assert scores["motion"] < 0.6


def test_rendering_is_seeded() -> None:
    table = attribute_table(ALL[:3])
    first, again = (render(table, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, render(table, torch.Generator().manual_seed(2)))


@given(st.sampled_from(ALL), st.integers(0, 2**31))
def test_captions_are_clean_sentences_that_differ_between_scenes(scene: object, seed: int) -> None:
    index = ALL.index(scene)  # type: ignore[arg-type]
    text = caption(ALL[index], random.Random(seed))
    assert text.strip() == text
    assert "{" not in text
    assert "  " not in text
    assert text == caption(ALL[index], random.Random(seed))


def test_captions_do_not_contradict() -> None:
    assert len({plain_caption(s) for s in ALL}) == len(ALL)
    assert len({caption(ALL[0], random.Random(i)) for i in range(60)}) > 20
