"""Alignment of two prompts: what the one says that the other does not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embedder.alignment import (
    ATTRIBUTE_WEIGHT,
    SYNONYM_WEIGHT,
    Alignment,
    EncodedPrompt,
    TokenWeight,
    align,
)
from services.embedder.encoders import MiniLMEncoder

DIM = 8
VOCABULARY = ["red", "crimson", "blue", "circle", "ball", "left", "right", "the", "a", "not", "slowly", "dog"]


def encoded(*words: str, separator: str = " ") -> EncodedPrompt:
    """A prompt of one token for each word between two special tokens; a state depends on the word alone."""
    prompt, offsets = "", [(0, 0)]
    for word in words:
        start = len(prompt) + (len(separator) if prompt else 0)
        prompt += (separator if prompt else "") + word
        offsets.append((start, start + len(word)))
    offsets.append((0, 0))
    states = [np.zeros(DIM), *(vector(word) for word in words), np.zeros(DIM)]
    return EncodedPrompt(prompt, np.array(states, dtype=np.float32), offsets)


@cache
def vector(word: str) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(list(word.encode())).standard_normal(DIM)


def texts(prompt: EncodedPrompt, tokens: tuple[TokenWeight, ...]) -> dict[str, float]:
    return {prompt.prompt[slice(*prompt.offsets[t.index])]: t.weight for t in tokens}


words = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=12)


@given(words)
def test_equal_prompts_differ_in_nothing(prompt: list[str]) -> None:
    assert align(encoded(*prompt), encoded(*prompt)) == Alignment((), ())


@given(words, st.randoms(use_true_random=False))
def test_order_and_punctuation_do_not_count(prompt: list[str], random: object) -> None:
    shuffled = prompt[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert align(encoded(*prompt), encoded(*shuffled, separator=", ")) == Alignment((), ())


@given(words, words)
def test_roles_are_symmetric_and_weights_bounded(donor: list[str], target: list[str]) -> None:
    there, back = align(encoded(*donor), encoded(*target)), align(encoded(*target), encoded(*donor))
    assert (there.gained, there.lost) == (back.lost, back.gained)
    for side in (there.gained, there.lost):
        indices = [token.index for token in side]
        assert indices == sorted(set(indices))
        assert all(0 < token.weight <= 1 for token in side)


@given(words, words)
def test_only_words_the_other_prompt_lacks_are_gained(donor: list[str], target: list[str]) -> None:
    prompt = encoded(*target)
    for token in align(encoded(*donor), prompt).gained:
        word = prompt.prompt[slice(*prompt.offsets[token.index])]
        assert target.count(word) > donor.count(word)
        assert word not in ("a", "the")


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_with_a_token_for_each_character(donor: str, target: str) -> None:
    def characters(text: str) -> EncodedPrompt:
        states = np.ones((len(text), DIM), dtype=np.float32)
        return EncodedPrompt(text, states, [(i, i + 1) for i in range(len(text))])

    found = align(characters(donor), characters(target))
    assert {t.index for t in found.gained} <= set(range(len(target)))
    assert {t.index for t in found.lost} <= set(range(len(donor)))


def test_attributes_are_decided_by_meaning() -> None:
    donor = encoded("a", "red", "circle")
    synonym, other = encoded("a", "crimson", "circle"), encoded("a", "blue", "circle")
    assert 0 < texts(synonym, align(donor, synonym).gained)["crimson"] <= SYNONYM_WEIGHT
    assert texts(other, align(donor, other).gained)["blue"] >= ATTRIBUTE_WEIGHT
    assert texts(donor, align(donor, other).lost)["red"] >= ATTRIBUTE_WEIGHT


def test_a_word_said_twice_is_matched_twice() -> None:
    donor, target = encoded("red", "circle", "red", "ball"), encoded("red", "circle", "blue", "ball")
    found = align(donor, target)
    assert list(texts(target, found.gained)) == ["blue"]
    assert found.lost == (TokenWeight(3, pytest.approx(found.lost[0].weight)),)
    assert found.lost[0].weight >= ATTRIBUTE_WEIGHT


def test_against_nothing_every_content_word_is_new() -> None:
    nothing = EncodedPrompt("…", np.zeros((2, DIM), dtype=np.float32), [(0, 0), (0, 1)])
    target = encoded("a", "circle")
    assert texts(target, align(nothing, target).gained) == {"circle": 1.0}


@pytest.fixture(scope="module")
def minilm() -> MiniLMEncoder:
    return MiniLMEncoder()


def gained(encoder: MiniLMEncoder, donor: str, target: str) -> dict[str, float]:
    sides = []
    for prompt in (donor, target):
        [encoding] = encoder.encode([prompt])
        sides.append(EncodedPrompt(prompt, encoding.states, encoding.offsets))
    return texts(sides[1], align(*sides).gained)


def test_minilm_synonym_against_contrast(minilm: MiniLMEncoder) -> None:
    donor = "a red circle moves left on a white background"
    crimson = gained(minilm, donor, donor.replace("red", "crimson"))
    blue = gained(minilm, donor, donor.replace("red", "blue"))
    assert list(crimson) == ["crimson"]
    assert list(blue) == ["blue"]
    assert crimson["crimson"] + 0.5 < blue["blue"]


def test_minilm_reordered_clauses(minilm: MiniLMEncoder) -> None:
    assert not gained(minilm, "a red square, on a black background.", "On a black background: a red square")


def test_minilm_subject_of_another_kind_is_newer_than_one_of_the_same(minilm: MiniLMEncoder) -> None:
    donor = "a red car at sunset"
    automobile = gained(minilm, donor, "a red automobile at sunset")
    astronaut = gained(minilm, donor, "a red astronaut at sunset")
    assert max(automobile.values()) < 0.35 < 0.5 < max(astronaut.values())


def test_minilm_tokens_of_one_word_share_its_weight(minilm: MiniLMEncoder) -> None:
    found = gained(minilm, "a circle", "a rhombicuboctahedron")
    assert len(found) > 1
    assert len(set(found.values())) == 1
