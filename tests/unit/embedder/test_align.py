"""Verifies the alignment of prompts with MiniLM and the shipped model's lexicon."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench.align import SPLITS, Compare, make_comparison, recognise_edits, recognise_paraphrases
from evaluation.scenes import Phrasing
from models.shapes.world import Split
from services.embedder.alignment import SLIGHT, Change, to_tokens
from services.embedder.encoders import MiniLMEncoder

MIN_PARAPHRASES = 0.25


@pytest.fixture(scope="module")
def minilm() -> MiniLMEncoder:
    return MiniLMEncoder()


@pytest.fixture(scope="module")
def compare(minilm: MiniLMEncoder) -> Compare:
    return make_comparison(minilm)


def words(prompt: str, changes: Sequence[Change], above: float = 0.3) -> dict[str, str]:
    """Returns the words that weigh more than `above`, with their categories."""
    return {prompt[c.start : c.end]: c.category.name for c in changes if c.weight > above}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a red car at sunset", "a crimson automobile at dusk"),
        ("a circle moving left", "the disc slides to the left"),
        ("a circle moving up", "a rising circle"),
        ("a circle moving down", "the circle falls"),
        ("a circle drifting right", "a circle moving from left to right"),
        ("a circle standing still", "a circle that does not move"),
        ("a resting circle", "a circle, not moving"),
        ("two cats on a sofa", "2 cats on a couch"),
        ("large blue square", "square, large and blue,"),
        ("large blue square", "large square that is blue"),
        ("a red square, on a black background.", "On a black background: a red square"),
        ("a video of a red circle", "please, show me a red circle, high quality"),
        ("a triangular block", "short film: there is a pyramid"),
        ("royal blue background, a cat", "a cat in front of a dark blue backdrop"),
        ("no ball", "without a ball"),
    ],
)
def test_synonyms_weigh_little(compare: Compare, one: str, other: str) -> None:
    found = compare(one, other)
    assert not words(other, found.gained)
    assert not words(one, found.lost)
    assert (found.reordered, found.things_added) == (False, 0)


@pytest.mark.parametrize(
    ("donor", "target", "lost", "gained"),
    [
        ("a red circle", "a blue circle", {"red": "COLOUR"}, {"blue": "COLOUR"}),
        ("a light blue shirt", "a dark blue shirt", {"light": "COLOUR"}, {}),
        ("a large dog", "a tiny dog", {"large": "SIZE"}, {"tiny": "SIZE"}),
        ("two cats", "three cats", {"two": "NUMBER"}, {"three": "NUMBER"}),
        ("a cat", "17 cats", {}, {"17": "NUMBER"}),
        ("a cat moving left", "a cat moving right", {"left": "MOTION"}, {"right": "MOTION"}),
        ("a cat moving left", "a cat rising", {"left": "MOTION"}, {"rising": "MOTION"}),
        ("a cat moving left", "a cat resting", {"moving": "MOTION", "left": "MOTION"}, {"resting": "MOTION"}),
        ("the cat moves", "the cat does not move", {"moves": "MOTION"}, {"not": "MOTION", "move": "MOTION"}),
        ("a train from the left", "a train from the right", {"left": "MOTION"}, {"right": "MOTION"}),
        ("a man with a hat", "a man without a hat", {"hat": "OTHER"},
         {"without": "NEGATION", "hat": "OTHER"}),
        ("a person is smiling", "a person isn't smiling", {"smiling": "OTHER"},
         {"isn't": "NEGATION", "smiling": "OTHER"}),
        ("a cat on white", "a cat on black", {"white": "BACKGROUND"}, {"black": "BACKGROUND"}),
        ("a bird in the blue sky", "a bird in the gray sky", {"blue": "BACKGROUND"}, {"gray": "BACKGROUND"}),
        ("a boat by day", "a boat at night", {"day": "BACKGROUND"}, {"night": "BACKGROUND"}),
        ("a red car at sunset", "a red astronaut at sunset", {"car": "OTHER"}, {"astronaut": "OTHER"}),
        ("a cat sleeping", "a dog sleeping", {"cat": "OTHER"}, {"dog": "OTHER"}),
        ("a cat above a box", "a cat below a box", {"above": "OTHER"}, {"below": "OTHER"}),
        ("红色的猫", "蓝色的猫", {"红色的猫": "OTHER"}, {"蓝色的猫": "OTHER"}),
    ],
)  # fmt: skip
def test_changed_words_weigh_most(
    compare: Compare, donor: str, target: str, lost: dict[str, str], gained: dict[str, str]
) -> None:
    found = compare(donor, target)
    assert words(donor, found.lost) == lost
    assert words(target, found.gained) == gained


@pytest.mark.parametrize(
    ("donor", "target", "swapped"),
    [
        ("a red circle and a blue square", "a blue circle and a red square", {"red", "blue"}),
        ("a black cat and a white dog", "a white cat and a black dog", {"black", "white"}),
        ("a man in a black suit walks a white dog", "a man in a white suit walks a black dog",
         {"black", "white"}),
        ("a large dog next to a small cat", "a small dog next to a large cat", {"large", "small"}),
        ("black background, red circle", "red background, black circle", {"black", "red"}),
        ("a red ball moving left and a red box moving up", "a red ball moving up, a red box moving left",
         {"left", "up"}),
    ],
)  # fmt: skip
def test_swapped_attributes_are_gained_and_lost(
    compare: Compare, donor: str, target: str, swapped: set[str]
) -> None:
    found = compare(donor, target)
    assert set(words(target, found.gained, 0.5)) == set(words(donor, found.lost, 0.5)) == swapped
    assert found.things_added == 0


def test_reordered_things_are_recognised(compare: Compare) -> None:
    found = compare("a red circle and a blue square", "a crimson disc beside a blue square")
    assert not found.reordered
    found = compare("a red circle and a blue square", "a blue square and a crimson circle")
    assert found.reordered
    assert [change.weight for change in found.gained] == [pytest.approx(SLIGHT)]


def test_things_added_are_counted(compare: Compare) -> None:
    one, two = "a cat on a black background", "a cat and a red ball on a black background"
    found = compare(one, two)
    assert (words(two, found.gained), found.lost) == ({"red": "COLOUR", "ball": "OTHER"}, ())
    assert found.things_added == 1
    assert compare(two, one).things_added == -1
    assert compare("a man with a hat", "a man without a hat").things_added == -1


def test_thing_of_another_kind_weighs_more_than_a_similar_one(compare: Compare) -> None:
    [puppy] = compare("a brown dog runs", "a brown puppy runs").gained
    [cat] = compare("a brown dog runs", "a brown cat runs").gained
    assert puppy.weight < 0.5 < cat.weight


def test_tokens_of_one_word_share_its_weight(compare: Compare, minilm: MiniLMEncoder) -> None:
    target = "a house, a rhombicuboctahedron"
    [encoding] = minilm.encode([target])
    tokens = to_tokens(compare("a house", target).gained, encoding.offsets)
    assert len(tokens) > 1
    assert len({token.weight for token in tokens}) == 1
    assert [token.index for token in tokens] == list(range(5, len(encoding.tokens) - 1))


@pytest.mark.parametrize(
    ("donor", "target", "lost", "gained"),
    [
        ("a circle moving up in the upper left", "a circle moving up in the lower right corner",
         {"upper left": "OTHER"}, {"lower right corner": "OTHER"}),
        ("a circle moving left", "a circle at the top right moving left", {}, {"top right": "OTHER"}),
        ("a ball on a striped pink background", "a ball on a pink background with polka dots",
         {"striped": "BACKGROUND"}, {"polka": "BACKGROUND", "dots": "BACKGROUND"}),
        ("a ball on a pink background", "a ball on a pink background with a checkered pattern",
         {}, {"checkered": "BACKGROUND"}),
        ("a ball, everything behind it is dotted red", "a ball, everything behind it is dotted blue",
         {"red": "BACKGROUND"}, {"blue": "BACKGROUND"}),
        ("a navy circle", "a blue circle", {"navy": "COLOUR"}, {"blue": "COLOUR"}),
        ("a ball flying left", "a ball rolling left", {}, {}),
    ],
)  # fmt: skip
def test_words_of_the_shipped_world_are_one_edit(
    compare: Compare, donor: str, target: str, lost: dict[str, str], gained: dict[str, str]
) -> None:
    found = compare(donor, target)
    assert (words(donor, found.lost), words(target, found.gained)) == (lost, gained)
    assert (found.reordered, found.things_added) == (False, 0)


# Some names of colours ("light pink"), of shapes ("four-sided") and of grounds are not known as synonyms.
@pytest.mark.parametrize("phrasing", ["seen", "unseen", "unseen-words"])
def test_phrasings_of_one_scene_hardly_differ(compare: Compare, phrasing: Phrasing) -> None:
    found = recognise_paraphrases(compare, "train", 40, 2, phrasing)
    assert sum(found) / len(found) >= MIN_PARAPHRASES


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("phrasing", ["seen", "unseen"])
def test_single_edit_changes_only_its_category(compare: Compare, split: Split, phrasing: Phrasing) -> None:
    found = recognise_edits(compare, split, 60, 3, phrasing)
    assert len(found) > 30
    assert sum(found) / len(found) >= 0.9
