"""Tests of the procedural world: scenes, their split, their videos and their captions."""

import itertools
import random
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.movingshapes import captions, split, world
from models.movingshapes.captions import Words, caption, plain_caption
from models.movingshapes.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    Scene,
    Split,
    combination,
    pair_scene,
    parse_scene,
    paths,
    render,
    scene_table,
    single_scenes,
    things,
)

SPLITS: tuple[Split, ...] = ("train", "calibration", "test")
SINGLES = {name: single_scenes(name) for name in SPLITS}

a_thing = st.sampled_from(things())
a_scene = st.builds(
    Scene, st.sampled_from(list(BACKGROUNDS)), st.one_of(st.tuples(a_thing), st.tuples(a_thing, a_thing))
)
a_seed = st.integers(0, 2**31)


def test_split_contains_every_combination_exactly_once() -> None:
    keys = [combination(s.background, *s.things) for scenes in SINGLES.values() for s in scenes]
    assert len(keys) == len(set(keys)) == 1050
    assert [round(len(SINGLES[name]) / len(keys), 2) for name in SPLITS] == [0.7, 0.1, 0.2]


def test_every_attribute_value_is_in_every_split() -> None:
    for scenes in SINGLES.values():
        assert {s.background for s in scenes} == set(BACKGROUNDS)
        for field, table in {"shape": SHAPES, "colour": COLOURS, "motion": MOTIONS, "size": SIZES}.items():
            assert {getattr(s.things[0], field) for s in scenes} == set(table)


def test_split_file_matches_the_output_of_its_program() -> None:
    generated = split.make_split(20_260)
    for name in SPLITS:
        assert set(generated[name]) == {combination(s.background, *s.things) for s in SINGLES[name]}


@given(st.sampled_from(SPLITS), a_seed)
def test_scenes_of_two_objects_belong_to_their_split(name: Split, seed: int) -> None:
    scene = pair_scene(name, torch.Generator().manual_seed(seed))
    assert len(scene.things) == 2
    assert all(Scene(scene.background, (t,)) in SINGLES[name] for t in scene.things)
    assert scene == pair_scene(name, torch.Generator().manual_seed(seed))


@given(st.lists(a_scene, max_size=4))
def test_scene_table_round_trips(scenes: list[Scene]) -> None:
    assert [parse_scene(row) for row in scene_table(scenes)] == scenes


def test_colours_are_far_apart() -> None:
    palette = torch.tensor([*COLOURS.values(), *BACKGROUNDS.values()], dtype=torch.float32)
    assert torch.pdist(palette).min() >= 70
    ours, behind = palette[: len(COLOURS)], palette[len(COLOURS) :]
    assert torch.cdist(ours, behind).min() >= 90  # objects differ clearly from the background


def test_rendering_is_seeded() -> None:
    table = scene_table([SINGLES["train"][0], pair_scene("train", torch.Generator().manual_seed(0))])
    first, again = (render(table, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, render(table, torch.Generator().manual_seed(2)))
    assert first.shape == (2, 3, world.FRAMES, world.HEIGHT, world.WIDTH)
    assert first.min() >= -1
    assert first.max() <= 1


@given(st.sampled_from(list(BACKGROUNDS)), a_thing, a_thing, a_seed)
def test_first_of_two_objects_is_above_and_left_of_the_second(
    background: str, first: world.Thing, second: world.Thing, seed: int
) -> None:
    table = scene_table([Scene(background, (first, second))])
    centroids, radii = paths(table, torch.Generator().manual_seed(seed))
    apart = centroids[0, 1] - centroids[0, 0]  # [T, 2]
    assert (apart > 0).all()
    assert (apart.norm(dim=-1) > radii[0].sum()).all()  # circles of their area do not touch


# Captions


def _tables() -> list[tuple[dict[str, Words], dict[str, object]]]:
    """Returns each table of words with the table of the world that it names."""
    shapes, colours, backgrounds = captions.SHAPES, captions.COLOURS, captions.BACKGROUNDS
    return [
        (shapes, dict.fromkeys(SHAPES)),
        (colours, dict(COLOURS)),
        (backgrounds, dict(BACKGROUNDS)),
        (captions.SIZES, dict(SIZES)),
        (captions.DOING, dict(MOTIONS)),
        (captions.DOES, dict(MOTIONS)),
    ]


def _words(kind: str) -> set[str]:
    return {w for named, _ in _tables() for words in named.values() for w in getattr(words, kind)}


def _contains(text: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", text) is not None


def _pattern(text: str) -> str:
    """Replaces every word for a value in a caption by #."""
    every = sorted(_words("seen") | _words("unseen"), key=len, reverse=True)
    return re.sub(r"\b(?:" + "|".join(map(re.escape, every)) + r")\b", "#", text).replace("an #", "a #")


def _captions(count: int, phrasing: captions.Phrasing, unseen_words: bool = False) -> list[str]:
    rng, draw = random.Random(6), torch.Generator().manual_seed(6)
    one, two = SINGLES["train"], [pair_scene("train", draw) for _ in range(count // 2)]
    return [caption(s, rng, phrasing, unseen_words) for s in two + rng.choices(one, k=count - len(two))]


@pytest.mark.parametrize("table", _tables(), ids=lambda t: "-".join(list(t[0])[:2]))
def test_every_value_has_words_and_every_word_has_one_value(
    table: tuple[dict[str, Words], dict[str, object]],
) -> None:
    named, values = table
    assert list(named) == list(values)
    words = [w for value in named.values() for w in (*value.seen, *value.unseen)]
    assert len(words) == len(set(words))
    assert all(value.seen and value.unseen for value in named.values())


@given(a_scene, a_seed, st.sampled_from(["seen", "unseen"]), st.booleans())
def test_captions_are_well_formed_and_seeded(
    scene: Scene, seed: int, phrasing: captions.Phrasing, unseen_words: bool
) -> None:
    text = caption(scene, random.Random(seed), phrasing, unseen_words)
    assert text == caption(scene, random.Random(seed), phrasing, unseen_words)
    assert text == text.strip()
    assert not re.search(r"[{}]|  | ,|,,|\ba [aeio]|\ban [^aeio]", text)


@given(a_scene, a_seed, st.sampled_from(["seen", "unseen"]), st.booleans())
def test_caption_names_every_attribute(
    scene: Scene, seed: int, phrasing: captions.Phrasing, unseen_words: bool
) -> None:
    text = caption(scene, random.Random(seed), phrasing, unseen_words)
    kind = "unseen" if unseen_words else "seen"
    named = [captions.BACKGROUNDS[scene.background]]
    for t in scene.things:
        named += [captions.SHAPES[t.shape], captions.COLOURS[t.colour], captions.SIZES[t.size]]
        doing, does = captions.DOING[t.motion], captions.DOES[t.motion]
        named.append(Words(doing.seen + does.seen, doing.unseen + does.unseen))
    for words in named:
        assert any(_contains(text, w) for w in getattr(words, kind)), (text, words)


def test_training_captions_contain_no_unseen_word() -> None:
    for text, word in itertools.product(_captions(300, "seen"), _words("unseen")):
        assert not _contains(text, word)


def test_training_captions_contain_no_unseen_pattern() -> None:
    seen = {_pattern(text) for text in _captions(1000, "seen")}
    unseen = {_pattern(text) for text in _captions(300, "unseen")}
    assert len(seen) > 300
    assert len(unseen) > 20
    assert not seen & unseen


def test_captions_vary_and_plain_captions_are_unique() -> None:
    scene = SINGLES["train"][0]
    assert len({caption(scene, random.Random(i)) for i in range(60)}) > 50
    every = [s for scenes in SINGLES.values() for s in scenes]
    assert len({plain_caption(s) for s in every}) == len(every)
