"""Verifies the division of prompts: words of the surroundings, of each thing, and of neither."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embedder.lexicon import Category, load_lexicon
from services.embedder.phrases import MAX_PHRASES, Reading, Word, read_prompt
from services.embedder.settings import SHIPPED_LEXICON

LEXICON = load_lexicon([SHIPPED_LEXICON])


def read(prompt: str) -> Reading:
    return read_prompt(prompt, LEXICON)


def texts(words: tuple[Word, ...]) -> set[str]:
    return {word.text for word in words}


def things(reading: Reading) -> list[set[str]]:
    return [texts(phrase) for phrase in reading.phrases]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red circle and a blue square", ["red circle", "blue square"]),
        ("circle, small and red, moving left", ["circle small red move left"]),
        ("a small, red circle", ["small red circle"]),
        ("a circle, red, small, moving, large, blue square", ["circle red small move", "large blue square"]),
        ("small square (red) moving left", ["small square red move left"]),
        ("a large square that is blue next to a cat", ["large square blue", "cat"]),
        ("a black cat chasing a white dog", ["black cat chasing", "white dog"]),
        ("a circle moving to the left", ["circle move left"]),
        ("a man without a hat", ["man", "without hat"]),
        ("moving left, a red circle", ["move left red circle"]),
        ("a dog that runs", ["dog run"]),
        ("a red shape", ["red shape"]),
        ("red", ["red"]),
        ("...", []),
    ],
)  # fmt: skip
def test_words_belong_to_the_thing_they_describe(prompt: str, expected: list[str]) -> None:
    assert things(read(prompt)) == [set(words.split()) for words in expected]


@pytest.mark.parametrize(
    "prompt",
    [
        "{} on a black background", "on a black background, {}", "{}, black background", "black backdrop: {}",
        "{}; the background is black", "background: black. {}", "{}. background: black",
        "everything is black but for {}", "{} and everything behind it is black", "{}, all on black",
        "{}, with black all around", "on black: {}", "a black scene in which {}", "{} on black, 2d",
        "there is {}, and behind it a black background", "short film: {} over a black background",
    ],
)  # fmt: skip
def test_surroundings_and_framing_are_separated(prompt: str) -> None:
    reading = read(prompt.format("a red circle moving left"))
    assert texts(reading.background) == {"black"}
    assert {word.category for word in reading.background} == {Category.BACKGROUND}
    assert things(reading) == [{"red", "circle", "move", "left"}]
    assert reading.things == 1
    assert all(word.slight for word in reading.framing)


@pytest.mark.parametrize(
    ("prompt", "background", "named"),
    [
        ("a bird flying in the blue sky", "blue sky", 1),
        ("a red car at sunset", "sunset", 1),
        ("a city bus", "", 1),
        ("a red circle on a black background moving left", "black", 1),
        ("black background, small, red circle", "black", 1),
        ("a red circle on a blue square", "", 2),
    ],
)
def test_places_and_times_are_surroundings(prompt: str, background: str, named: int) -> None:
    reading = read(prompt)
    assert texts(reading.background) == set(background.split())
    assert reading.things == named


@pytest.mark.parametrize(
    ("prompt", "negated", "named"),
    [
        ("a man with no red hat walking", "red hat", 1),
        ("a man without a hat", "hat", 1),
        ("no ball", "ball", 0),
        ("a dog that isn't brown", "brown", 1),
        ("a man who is not smiling and a dog", "smiling", 2),
        ("a ball that does not move", "", 1),
    ],
)
def test_negation_applies_to_its_words(prompt: str, negated: str, named: int) -> None:
    reading = read(prompt)
    assert {w.text for phrase in reading.phrases for w in phrase if w.negated} == set(negated.split())
    assert reading.things == named


@pytest.mark.parametrize(
    ("word", "form"),
    [
        ("cats", "cat"), ("glass", "glass"), ("shorts", "shorts"), ("boxes", "box"), ("moving", "move"),
        ("dropping", "drop"), ("travelling", "travel"), ("rises", "rise"), ("goes", "go"), ("skies", "sky"),
        ("bees", "bee"), ("dotted", "dotted"), ("videos", "video"), ("red", "red"),
    ],
)  # fmt: skip
def test_inflected_words_have_plain_forms(word: str, form: str) -> None:
    assert LEXICON.to_plain(word) == form


clauses = st.lists(st.sampled_from(["a", "red", "no", "cat,", "on", "black", "moving", "from", "left"]))


@given(st.text(max_size=80) | clauses.map(" ".join))
def test_every_word_is_read_at_most_once_with_its_range(prompt: str) -> None:
    reading = read(prompt)
    words = [*reading.background, *reading.framing, *(word for phrase in reading.phrases for word in phrase)]
    ranges = sorted((word.start, word.end) for word in words)
    assert all(0 <= start < end <= len(prompt) for start, end in ranges)
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
    assert all(reading.phrases)
    assert 0 <= reading.things <= len(reading.phrases)


def test_phrases_are_bounded() -> None:
    reading = read("a cat, " * 100)
    assert len(reading.phrases) == MAX_PHRASES
    assert reading.things == 100
    assert sum(map(len, reading.phrases)) == 100
