"""What one prompt says that another does not, token by token. Pure: plain values and numpy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.embedder.lexicon import FUNCTION_WORDS, meaning

# A synonym from the lexicon is at most this new, an attribute that the other prompt lacks at least that new.
SYNONYM_WEIGHT = 0.2
ATTRIBUTE_WEIGHT = 0.8

# Letters and digits, with an apostrophe inside a word; everything else is punctuation.
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and what its encoder made of it.

    Args:
        states: float32 [L, D], one row for each token.
        offsets: L character ranges [start, end) of `prompt`; start == end marks a special token.
    """

    prompt: str
    states: NDArray[np.float32]
    offsets: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class TokenWeight:
    """How new a token is to the other prompt: 0 said there too, 1 nothing there comes near."""

    index: int
    weight: float


@dataclass(frozen=True)
class Alignment:
    """`gained`: tokens of the target that the donor lacks; `lost`: tokens of the donor that the target lacks.

    Each by position, weights above 0.
    """

    gained: tuple[TokenWeight, ...]
    lost: tuple[TokenWeight, ...]


@dataclass(frozen=True)
class _Word:
    key: str
    tokens: tuple[int, ...]
    state: NDArray[np.float32]  # [D], of length 1


def align(donor: EncodedPrompt, target: EncodedPrompt) -> Alignment:
    """Compares two prompts; swapping them swaps `gained` and `lost`.

    Words that both say, in any order, are matched first, as often as both say them; then the lexicon's
    synonyms. The rest weighs 1 − the largest cosine of its state to a word of the other prompt. Function
    words, punctuation and special tokens never count. All tokens of a word share its weight.
    """
    donor_words, target_words = _words(donor), _words(target)
    return Alignment(gained=_new(target_words, donor_words), lost=_new(donor_words, target_words))


def _words(encoded: EncodedPrompt) -> list[_Word]:
    words, taken = [], 0
    for match in _WORD.finditer(encoded.prompt):
        key = match[0].casefold()
        # Some tokenizers count the space before a word to its first token: ranges overlap words, not more.
        tokens = tuple(
            i
            for i, (start, end) in enumerate(encoded.offsets)
            if i >= taken and max(start, match.start()) < min(end, match.end())
        )
        if tokens:
            taken = tokens[-1] + 1
            if key not in FUNCTION_WORDS:
                words.append(_Word(key, tokens, _unit(encoded.states[list(tokens)].mean(axis=0))))
    return words


def _unit(state: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(state))
    return state / length if length > 0 else state


def _new(words: list[_Word], other: list[_Word]) -> tuple[TokenWeight, ...]:
    """Tokens of `words` that `other` lacks, by position."""
    unsaid = _unmatched(words, Counter(word.key for word in other))
    unsaid_there = _unmatched(other, Counter(word.key for word in words))
    synonyms = Counter(number for word in unsaid_there if (number := meaning(word.key)) is not None)
    states = np.stack([word.state for word in other]) if other else None
    found = []
    for word in unsaid:
        weight = 1.0 if states is None else min(1.0, max(0.0, 1.0 - float((states @ word.state).max())))
        number = meaning(word.key)
        if number is not None:
            if synonyms[number]:
                synonyms[number] -= 1
                weight = min(weight, SYNONYM_WEIGHT)
            else:
                weight = max(weight, ATTRIBUTE_WEIGHT)
        if weight > 0:
            found += [TokenWeight(index, weight) for index in word.tokens]
    return tuple(found)


def _unmatched(words: Iterable[_Word], there: Counter[str]) -> list[_Word]:
    """The words that are not said there, each counted as often as it is said."""
    left = Counter(there)
    unmatched = []
    for word in words:
        if left[word.key]:
            left[word.key] -= 1
        else:
            unmatched.append(word)
    return unmatched
