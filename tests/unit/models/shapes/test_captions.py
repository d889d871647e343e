"""Tests of captions: every attribute is named, and held-out words never occur in training."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.shapes import words
from models.shapes.captions import caption, plain_caption, training_caption
from models.shapes.world import COLOURS, MOTIONS, PLACES, SHAPES, SIZES, TEXTURES, draw_scenes

TABLES = {
    "shape": (words.SHAPES, SHAPES),
    "colour": (words.COLOURS, COLOURS),
    "size": (words.SIZES, SIZES),
    "motion": (words.DOING, MOTIONS),
    "verb": (words.DOES, MOTIONS),
    "place": (words.PLACES, PLACES),
    "texture": (words.TEXTURES, TEXTURES),
}


@pytest.mark.parametrize("table", TABLES)
def test_every_value_has_seen_and_unseen_words(table: str) -> None:
    named, values = TABLES[table]
    assert list(named) == list(values)
    for entry in named.values():
        assert entry.seen
        assert entry.unseen
        assert not {w for w in entry.seen if w} & set(entry.unseen)


@pytest.mark.parametrize("table", TABLES)
def test_no_word_names_two_values(table: str) -> None:
    used = [w for entry in TABLES[table][0].values() for w in {*entry.seen, *entry.unseen} if w]
    assert len(used) == len(set(used))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), unseen=st.booleans())
def test_captions_name_every_attribute(seed: int, unseen: bool) -> None:
    scene = draw_scenes("calibration", 1, seed)[0]
    text = caption(scene, random.Random(seed), "unseen", unseen)

    def names(entry: words.Words) -> bool:
        return any(w in text for w in (entry.unseen if unseen else entry.seen))

    assert names(words.COLOURS[scene.background])
    for thing in scene.things:
        assert names(words.SHAPES[thing.shape])
        assert names(words.COLOURS[thing.colour])
        assert names(words.SIZES[thing.size])
        assert names(words.DOING[thing.motion]) or names(words.DOES[thing.motion])
        assert thing.place is None or names(words.PLACES[thing.place])


def test_training_captions_hold_no_unseen_words() -> None:
    held_out = {w for table, _ in TABLES.values() for entry in table.values() for w in entry.unseen if w}
    pattern = re.compile("|".join(rf"\b{re.escape(w)}\b" for w in held_out))
    rng = random.Random(0)
    for scene in draw_scenes("train", 3000, 1):
        text = training_caption(scene, rng)
        assert not pattern.search(text), text


def test_training_captions_leave_attributes_open_at_times() -> None:
    rng = random.Random(0)
    texts = [training_caption(scene, rng) for scene in draw_scenes("train", 500, 1)]
    silent = [t for t in texts if not any(w in t for e in words.SIZES.values() for w in e.seen)]
    assert 5 < len(silent) < 100
    assert any("dragon" in t or "forest" in t or "wooden" in t for t in texts)


def test_captions_are_tidy() -> None:
    rng = random.Random(0)
    for scene in draw_scenes("train", 500, 2):
        text = caption(scene, rng)
        assert text == text.strip()
        assert not re.search(r"  | [,;.]|,,|\ba [aeio]", text), text


def test_plain_caption_reads_like_a_sentence() -> None:
    scene = draw_scenes("train", 1, 0)[0]
    thing = scene.things[0]
    assert f"{thing.size} {thing.colour} {thing.shape}" in plain_caption(scene)
    assert plain_caption(scene).endswith(f"{scene.background} background")
