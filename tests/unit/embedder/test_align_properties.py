"""Verifies properties of the alignment of any two prompts, for any encoder."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import cache, partial
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.embedder.alignment import Alignment, EncodedPrompt, to_tokens
from services.embedder.alignment import align as align_with
from services.embedder.lexicon import Category, load_lexicon
from services.embedder.settings import SHIPPED_LEXICON

DIM = 8
LEXICON = load_lexicon([SHIPPED_LEXICON])
VOCABULARY = [
    *("red", "crimson", "blue", "dark", "large", "circle", "ball", "square", "dog", "cat", "house", "two"),
    *("left", "right", "moving", "rising", "still", "dancing", "background", "video"),
    *("the", "a", "and", "with", "on", "from", "no", "not", ",", "."),
]
NOTHING = Alignment((), (), reordered=False, things_added=0)


def align(donor: EncodedPrompt, target: EncodedPrompt) -> Alignment:
    return align_with(donor, target, LEXICON)


def encoded(prompt: str) -> EncodedPrompt:
    """Encodes each run between spaces as one token, between two special tokens; equal runs have equal
    states."""
    offsets, at = [(0, 0)], 0
    for run in prompt.split():
        at = prompt.index(run, at)
        offsets.append((at, at + len(run)))
        at += len(run)
    offsets.append((0, 0))
    states = [np.zeros(DIM) if start == end else vector(prompt[start:end]) for start, end in offsets]
    return EncodedPrompt(prompt, np.array(states, dtype=np.float32), offsets)


@cache
def vector(run: str) -> NDArray[np.float64]:
    return np.random.default_rng(list(run.encode())).standard_normal(DIM)


prompts = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=14).map(" ".join)


@given(prompts)
def test_equal_prompts_have_no_differences(prompt: str) -> None:
    assert align(encoded(prompt), encoded(prompt)) == NOTHING


@given(prompts, prompts)
def test_roles_are_symmetric_and_weights_bounded(donor: str, target: str) -> None:
    there, back = align(encoded(donor), encoded(target)), align(encoded(target), encoded(donor))
    assert (there.gained, there.lost) == (back.lost, back.gained)
    assert (there.reordered, there.things_added) == (back.reordered, -back.things_added)
    for side, prompt in ((there.gained, target), (there.lost, donor)):
        assert all(0 < change.weight <= 1 for change in side)
        ends = [0, *(end for change in side for end in (change.start, change.end)), len(prompt)]
        assert ends == sorted(ends)


@given(st.permutations(["large", "blue", "square", "moving", "left"]))
def test_word_order_within_a_phrase_is_ignored(words: list[str]) -> None:
    assert align(encoded("a large blue square moving left"), encoded(" ".join(words))) == NOTHING


things = st.lists(
    st.sampled_from(["a red circle", "a blue square", "two dogs", "a cat dancing", "the house"]),
    min_size=2,
    max_size=5,
    unique=True,
)


@given(things, st.randoms(use_true_random=False), st.sampled_from([", ", " and ", " next to "]))
def test_order_of_things_changes_nothing_but_reordered(
    named: list[str], shuffle: random.Random, joined: str
) -> None:
    other = named[:]
    shuffle.shuffle(other)
    found = align(encoded(" and ".join(named)), encoded(joined.join(other)))
    assert found == Alignment((), (), reordered=other != named, things_added=0)


@given(things, st.integers(0, 5))
def test_added_thing_is_the_only_gain(named: list[str], at: int) -> None:
    other = [*named[:at], "a green triangle", *named[at:]]
    target = " and ".join(other)
    found = align(encoded(" and ".join(named)), encoded(target))
    assert [target[change.start : change.end] for change in found.gained] == ["green", "triangle"]
    assert (found.lost, found.reordered, found.things_added) == ((), False, 1)


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_aligns_with_a_token_for_each_character(donor: str, target: str) -> None:
    def characters(text: str) -> EncodedPrompt:
        states = np.ones((len(text), DIM), dtype=np.float32)
        return EncodedPrompt(text, states, [(i, i + 1) for i in range(len(text))])

    found = align(characters(donor), characters(target))
    for side, prompt in ((found.gained, characters(target)), (found.lost, characters(donor))):
        tokens = to_tokens(side, prompt.offsets)
        assert [token.index for token in tokens] == [i for c in side for i in range(c.start, c.end)]


def test_every_word_is_new_to_an_empty_prompt() -> None:
    nothing = EncodedPrompt("…", np.zeros((2, DIM), dtype=np.float32), [(0, 0), (0, 1)])
    [change] = align(nothing, encoded("a house")).gained
    assert (change.start, change.end, change.weight) == (2, 7, 1.0)


def test_words_past_the_last_token_are_compared_without_states() -> None:
    donor, target = encoded("a dog and a red house"), encoded("a dog and a blue house")
    short = EncodedPrompt(target.prompt, target.states[:3], target.offsets[:3])
    [change] = align(donor, short).gained
    assert (change.start, change.end, change.category) == (12, 16, Category.COLOUR)
    assert to_tokens([change], short.offsets) == ()


def test_tokens_share_characters_with_their_words() -> None:
    prompt = "an unheard-of house"
    [first, *_] = changes = align(encoded("a cat"), encoded(prompt)).gained
    assert (first.start, first.end) == (3, 10)
    # Two tokens within a word, one across two words and the space before them, a special token.
    offsets = [(0, 2), (2, 6), (6, 10), (10, 19), (0, 0)]
    found = to_tokens(changes, offsets)
    assert [token.index for token in found] == [1, 2, 3]
    assert found[0].weight == found[1].weight == first.weight
    assert found[2].weight == max(change.weight for change in changes[1:])


@pytest.mark.parametrize("donor", ["a cat, ", "c,", "no ", "red dog house ", "x"])
@pytest.mark.parametrize("target", ["a dog and ", "b ", "not ", "crimson cat houses "])
def test_align_work_grows_linearly_with_the_prompts(donor: str, target: str) -> None:
    short, long = (
        count_lines(partial(align, *[encoded((text * size)[:size]) for text in (donor, target)]))
        for size in (1000, 2000)
    )
    # Twice for linear work, four times for anything quadratic in words or phrases in Python.
    assert long < 3 * short


def count_lines(call: Callable[[], object]) -> int:
    """Returns the number of Python lines that a call executes: its work, whatever the machine's speed."""
    lines = 0

    def trace(_: FrameType, event: str, __: object) -> Callable[..., Any]:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines
