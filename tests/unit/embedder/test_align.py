"""Verifies the alignment of prompts with MiniLM and the shipped model's lexicon."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench.align import (
    Compare,
    classify_groups,
    classify_pairs,
    is_recognised,
    make_comparison,
    reword_groups,
)
from evaluation.scenes import PARAPHRASE, Phrasing, make_groups
from services.embedder.alignment import SLIGHT, Change, to_tokens
from services.embedder.encoders import MiniLMEncoder

PAIRS = 88  # 8 of each kind
MIN_PARAPHRASES, MIN_EDITS = 0.9, 0.95


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
        ("royal blue background, a cat", "a cat in front of a bright blue backdrop"),
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
        ("a light green shirt", "a dark green shirt", {"light": "COLOUR"}, {}),
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
        ("a 🐈 in the rain", "a 👩🏽‍🚀 in the rain", {"🐈": "OTHER"}, {"👩🏽‍🚀": "OTHER"}),
        ("लाल वृत्त", "हरा वृत्त", {"लाल": "OTHER"}, {"हरा": "OTHER"}),
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
         {"upper left": "PLACE"}, {"lower right corner": "PLACE"}),
        ("a circle moving left", "a circle at the top right moving left", {}, {"top right": "PLACE"}),
        ("a circle on the left", "a circle in the center", {"left": "PLACE"}, {"center": "PLACE"}),
        ("a ball on a striped pink background", "a ball on a pink background with polka dots",
         {"striped": "TEXTURE"}, {"polka dots": "TEXTURE"}),
        ("a ball on a pink background", "a ball on a pink background with a checkered pattern",
         {}, {"checkered": "TEXTURE"}),
        ("a child in a dress", "a child wearing a polka-dot dress", {}, {"polka-dot": "TEXTURE"}),
        ("a ball, navy background", "a ball against a blue wall", {"navy": "BACKGROUND"},
         {"blue": "BACKGROUND"}),
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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a navy square on a wall full of spots", "a dark blue four-sided shape, dotted background"),
        ("a pyramid on a very dark blue ground", "a three-sided figure, background: midnight blue"),
        ("a light pink ball, mid gray backdrop", "a pink disc, the background is grey"),
        ("a ball, background: red striped", "on a stripy red background a ball"),
        ("a red ball alongside a blue ball", "a red ball next to a blue ball"),
        ("at the top left a cat, at the top right a dog",
         "a cat in the upper left and a dog in the upper right"),
        ("a cat sits, in the upper left corner a dog runs", "a cat sits and a dog runs in the upper left"),
        ("a white ball on the left side of the frame", "a white ball on the left, cinematic"),
        ("a glass full of water", "a glass filled with water"),
        ("a lady wearing a red dress", "a woman in a red dress"),
    ],
)  # fmt: skip
def test_other_words_for_one_scene_weigh_little(compare: Compare, one: str, other: str) -> None:
    found = compare(one, other)
    assert (words(one, found.lost), words(other, found.gained)) == ({}, {})
    assert (found.reordered, found.things_added) == (False, 0)


def test_style_camera_and_mood_are_kinds_of_their_own(minilm: MiniLMEncoder) -> None:
    cat, dog = "a cat sits on a sofa", "a dog runs through a forest"
    expected = {
        (cat, f"{cat}, anime style"): "style",
        (f"{cat}, watercolor", f"{cat}, anime style"): "style",
        (f"{cat}, manga style", f"{cat}, anime style"): "paraphrase",
        (cat, f"{cat} in the style of an anime"): "style",
        (f"an oil painting of {cat}", cat): "style",
        (dog, f"pixel art of {dog}"): "style",
        (f"a close-up of {cat}", f"a wide shot of {cat}"): "camera",
        (dog, f"a drone shot of {dog}"): "camera",
        (f"{dog}, golden hour", dog): "mood",
        (f"{cat}, gloomy mood", f"{cat}, cheerful mood"): "mood",
        ("a red cat sits on a sofa", "a blue cat sits on a sofa, anime style"): "several",
        (dog, f"a close-up of {dog}, film noir"): "several_opening",
        (cat, f"{cat} next to a lamp"): "added",
    }
    found = dict(zip(expected, classify_pairs(minilm, list(expected)), strict=True))
    assert found == expected


@pytest.mark.parametrize("phrasing", ["seen", "unseen", "unseen-words"])
def test_kinds_of_edit_are_recognised(minilm: MiniLMEncoder, phrasing: Phrasing) -> None:
    groups = make_groups("calibration", PAIRS, 3, phrasing)
    for worded in (groups, reword_groups(groups, 3, phrasing)):
        assigned = classify_groups(minilm, worded)
        right = [
            (group.kind, is_recognised(group, kind)) for group, kind in zip(worded, assigned, strict=True)
        ]
        same = [hit for kind, hit in right if kind == PARAPHRASE]
        edits = [hit for kind, hit in right if kind != PARAPHRASE]
        assert sum(same) / len(same) >= MIN_PARAPHRASES
        assert sum(edits) / len(edits) >= MIN_EDITS
