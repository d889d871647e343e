"""Differences between two prompts, word by word, computed by pure functions.

Words are compared with those that describe the same thing: "a red circle and a blue square" differs from "a
blue circle and a red square", though the words are the same.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from services.embedder.lexicon import MOVE, STILL, Category, Lexicon
from services.embedder.phrases import MAX_PHRASES, Reading, Word, read_prompt

SLIGHT = 0.1
"""Weight of a synonym, and upper bound on the weight of a word on which little depends."""
UNRELATED, ALIKE = 0.5, 0.85
"""Cosines up to which two words share no meaning, and from which they share all of it. MiniLM, in equal
contexts: cat and dog 0.50, car and truck 0.54, puppy and dog 0.74, woman and lady 0.77, car and automobile
0.86."""
NAME_IMPORTANCE = 2.0
"""Importance of a thing's name when phrases are matched; that of an attribute is 1."""

SYNONYM = 1 - SLIGHT
"""Share of a word's meaning that a synonym covers."""

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]
Range = tuple[int, int]  # characters [start, end) of a prompt


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt with the output of its encoder.

    Attributes:
        states: token states, float32 [L, D].
        offsets: character ranges of the L tokens in `prompt`; start == end marks a special token.
    """

    prompt: str
    states: Floats
    offsets: Sequence[Range]


@dataclass(frozen=True)
class Change:
    """The word at characters [start, end), and how new it is to the other prompt.

    Attributes:
        weight: novelty to the other prompt: 0 if it has a word of the same meaning, 1 if no similar word.
    """

    start: int
    end: int
    weight: float
    category: Category


@dataclass(frozen=True)
class TokenChange:
    """The token at `index` and how new it is to the other prompt."""

    index: int
    weight: float
    category: Category


@dataclass(frozen=True)
class Alignment:
    """Differences between two prompts.

    Attributes:
        gained: words of the target that the donor lacks, by position, with weights above 0.
        lost: words of the donor that the target lacks, in the same form.
        reordered: whether two or more things with matching descriptions appear in another order.
        things_added: number of things named by the target minus those named by the donor.
    """

    gained: tuple[Change, ...]
    lost: tuple[Change, ...]
    reordered: bool
    things_added: int


def align(donor: EncodedPrompt, target: EncodedPrompt, lexicon: Lexicon) -> Alignment:
    """Compares two prompts; swapping them swaps `gained` and `lost` and negates `things_added`.

    Each phrase of one prompt is matched with at most one of the other. A word weighs 1 minus the share of its
    meaning that the matched phrase covers: for a word of the lexicon by a synonym, for another word by one
    with a similar state. Word order within a phrase, function words and punctuation are ignored.
    """
    return compare_words(PromptWords(donor, lexicon), PromptWords(target, lexicon))


def compare_words(donor: PromptWords, target: PromptWords) -> Alignment:
    """Compares two prompts as `align` does; their words are read once for several comparisons."""
    if donor.prompt > target.prompt:  # in one direction only, so that ties resolve alike
        found = compare_words(target, donor)
        return Alignment(found.lost, found.gained, found.reordered, -found.things_added)
    one, other = donor, target
    cosines = one.states @ other.states.T
    covered = _compute_coverage(one, other, cosines)
    covered_back = _compute_coverage(other, one, cosines.T)
    similarity = _compare_phrases(one, other, covered, covered_back)
    pairs = _match_phrases(similarity)
    lost, gained = np.ones(len(one.words)), np.ones(len(other.words))
    for i, j in ((0, 0), (1, 1), *((2 + i, 2 + j) for i, j in pairs)):
        rows, columns = one.parts[i], other.parts[j]
        forward, back = covered[rows, columns], covered_back[columns, rows]
        lost[rows] = _compute_novelty(forward, back)
        gained[columns] = _compute_novelty(back, forward)
    return Alignment(
        gained=_list_changes(other.words, gained),
        lost=_list_changes(one.words, lost),
        reordered=any(j > k for j, k in pairwise(j for i, j in pairs if similarity[i, j] > 0)),
        things_added=other.reading.things - one.reading.things,
    )


def to_tokens(changes: Sequence[Change], offsets: Sequence[Range]) -> tuple[TokenChange, ...]:
    """Maps changed words to tokens, by position. All tokens of a word share its weight.

    A token of several words has the largest of their weights. Words past an encoder's last token have none.
    """
    found = []
    overlaps = _find_overlaps([(change.start, change.end) for change in changes], offsets)
    for index, overlapping in enumerate(overlaps):
        if overlapping:
            change = max((changes[i] for i in overlapping), key=lambda change: change.weight)
            found.append(TokenChange(index, change.weight, change.category))
    return tuple(found)


def _find_overlaps(words: Sequence[Range], offsets: Sequence[Range]) -> list[range]:
    """Returns for each token the words that share a character with it; words are ordered and disjoint."""
    starts, ends = [start for start, _ in words], [end for _, end in words]
    return [
        range(bisect_right(ends, start), bisect_left(starts, end)) if start < end else range(0)
        for start, end in offsets
    ]


class PromptWords:
    """Words of a prompt, phrase after phrase, with what a comparison reads of each.

    Attributes:
        prompt: the prompt.
        states: states of the words, float32 [W, D], of length 1; 0 for a word that the encoder did not see.
        parts: slices of the words: background, framing, then each phrase.
        importance: weight of each word when phrases are matched, float64 [W].
        senses, texts: meaning, with its negation, and text of each word.
        negated, has_state, moves, moving: whether each word is negated, has a state that reflects its
            meaning, is the general word for movement, and names a movement of any kind; bool [W].
    """

    def __init__(self, encoded: EncodedPrompt, lexicon: Lexicon) -> None:
        self.prompt = encoded.prompt
        self.reading: Reading = read_prompt(encoded.prompt, lexicon)
        groups = (self.reading.background, self.reading.framing, *self.reading.phrases)
        self.words: list[Word] = [word for group in groups for word in group]
        bounds = np.cumsum([0, *map(len, groups)]).tolist()
        self.parts = [slice(start, end) for start, end in pairwise(bounds)]
        self.states = _average_states(self.words, encoded)
        self.importance = np.array(
            [0.0 if w.slight else NAME_IMPORTANCE if w.names else 1.0 for w in self.words]
        )
        self.senses = [(w.sense, w.negated) for w in self.words]
        self.texts = [w.text for w in self.words]
        self.negated = np.array([w.negated for w in self.words], dtype=bool)
        self.has_state = np.array(list(map(_has_state, self.words)), dtype=bool)
        self.moves = np.array([w.sense == MOVE and not w.negated for w in self.words], dtype=bool)
        self.moving = np.array(list(map(_is_moving, self.words)), dtype=bool)


def _average_states(words: Sequence[Word], encoded: EncodedPrompt) -> Floats:
    """Returns [W, D]: the mean state of each word's tokens, scaled to length 1."""
    order = sorted(range(len(words)), key=lambda i: words[i].start)
    overlaps = _find_overlaps([(words[i].start, words[i].end) for i in order], encoded.offsets)
    sums = np.zeros((len(words), encoded.states.shape[1]), dtype=np.float32)
    pairs = [(order[place], token) for token, places in enumerate(overlaps) for place in places]
    if pairs:
        rows, tokens = np.array(pairs).T
        np.add.at(sums, rows, encoded.states[tokens])
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    unit: Floats = sums / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def _compute_coverage(one: PromptWords, other: PromptWords, cosines: Floats) -> Matrix:
    """Returns [W, V]: the share of the meaning of each word of `one` that each of `other` covers, 0 to 1."""
    same_sense = _equal(one.senses, other.senses)
    same_text = _equal(one.texts, other.texts)
    near = np.equal.outer(one.negated, other.negated) & np.logical_and.outer(one.has_state, other.has_state)
    implied = np.logical_and.outer(one.moves, other.moving)
    share = np.clip((cosines - UNRELATED) / (ALIKE - UNRELATED), 0, 1) * SYNONYM
    covered = np.where(near, share, 0).astype(np.float64)
    covered[same_sense | implied] = SYNONYM
    covered[same_sense & same_text] = 1
    return covered


def _has_state(word: Word) -> bool:
    """Returns whether a word's state reflects its meaning: English encoders map all foreign words alike."""
    return not word.known and word.text.isascii()


def _is_moving(word: Word) -> bool:
    return word.category is Category.MOTION and word.sense != STILL and not word.negated


def _equal(one: Sequence[object], other: Sequence[object]) -> NDArray[np.bool_]:
    """Returns [W, V]: whether two keys are equal."""
    numbers: dict[object, int] = {}
    rows, columns = (
        np.array([numbers.setdefault(key, len(numbers)) for key in side], dtype=np.int64)
        for side in (one, other)
    )
    return np.equal.outer(rows, columns)


def _compare_phrases(one: PromptWords, other: PromptWords, covered: Matrix, covered_back: Matrix) -> Matrix:
    """Returns [P, Q]: the shared importance of two phrases, in words, summed over both directions."""
    shape = len(one.reading.phrases), len(other.reading.phrases)
    if not min(shape):
        return np.zeros(shape)
    return _sum_shared(one, other, covered) + _sum_shared(other, one, covered_back).T


def _sum_shared(one: PromptWords, other: PromptWords, covered: Matrix) -> Matrix:
    """Returns [P, Q]: the importance of the words of a phrase of `one` that a phrase of `other` covers."""
    rows, columns = ([part.start for part in side.parts[2:]] for side in (one, other))
    first_row, first_column = rows[0], columns[0]
    covered = np.where(covered >= SYNONYM, 1, covered)  # a synonym counts in full
    best = np.maximum.reduceat(covered[first_row:, first_column:], np.array(columns) - first_column, axis=1)
    shared: Matrix = np.add.reduceat(
        one.importance[first_row:, None] * best, np.array(rows) - first_row, axis=0
    )
    return shared


def _match_phrases(similarity: Matrix) -> list[tuple[int, int]]:
    """Matches each phrase of the shorter side with another, for the largest sum of similarities.

    Among equal sums it chooses the one closest to the order of both prompts. Both terms are whole numbers
    and therefore exact: millionths of a word, and squared distances, whose sum stays below the factor
    between the two.
    """
    millionths = np.round(similarity * 1e6)
    rows, columns = np.indices(similarity.shape)
    distance = (rows - columns) ** 2
    chosen = linear_sum_assignment(millionths * MAX_PHRASES**3 - distance, maximize=True)
    return list(zip(*(indices.tolist() for indices in chosen), strict=True))


def _compute_novelty(covered: Matrix, back: Matrix) -> NDArray[np.float64]:
    """Returns [W]: how new each word is to the matched phrase, 0 to 1.

    Args:
        covered, back: shares of each word's meaning that the other side covers, [W, V] and [V, W].
    """
    best = covered.max(axis=1, initial=0)
    # A word that has a counterpart does not also cover half of another word.
    free = back.max(axis=1, initial=0) < SYNONYM
    novelty: NDArray[np.float64] = 1 - np.where(
        best >= SYNONYM, best, covered[:, free].max(axis=1, initial=0)
    )
    return novelty


def _list_changes(words: Sequence[Word], weights: NDArray[np.float64]) -> tuple[Change, ...]:
    found = [
        Change(word.start, word.end, min(weight, SLIGHT) if word.slight else weight, word.category)
        for word, weight in zip(words, weights.tolist(), strict=True)
        if weight > 0
    ]
    return tuple(sorted(found, key=lambda change: change.start))
