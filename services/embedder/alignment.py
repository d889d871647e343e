"""What one prompt says that another does not, word by word. Pure: plain values and numpy.

Words are compared with those that are said of the same thing: "a red circle and a blue square" does not say
what "a blue circle and a red square" says, though the words are the same.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from services.embedder import lexicon
from services.embedder.lexicon import Category
from services.embedder.phrases import Reading, Word, read

# Weight of another word for the same, and most that a word has on which little depends.
SLIGHT = 0.1
# Cosines at which a word says nothing of what another says, and all of it. MiniLM, in equal surroundings: cat
# and dog 0.50, car and truck 0.54, puppy and dog 0.74, woman and lady 0.77, car and automobile 0.86.
UNLIKE, ALIKE = 0.5, 0.85
# In matching phrases, the name of a thing counts as much as so many of its attributes.
NAME = 2.0

NEARLY = 1 - SLIGHT

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]
Range = tuple[int, int]  # characters [start, end) of a prompt


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and what its encoder made of it.

    Args:
        states: float32 [L, D], one row for each token.
        offsets: L character ranges of `prompt`; start == end marks a special token.
    """

    prompt: str
    states: Floats
    offsets: Sequence[Range]


@dataclass(frozen=True)
class Change:
    """The word at characters [start, end), and how new it is to the other prompt.

    Args:
        weight: 0 said there too, 1 nothing there comes near.
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
    """How two prompts differ.

    Attributes:
        gained: words of the target that the donor lacks, by position, weights above 0.
        lost: words of the donor that the target lacks, likewise.
        reordered: both say the same, in part at least, of two or more things, in another order.
        things_added: things named by the target less those named by the donor.
    """

    gained: tuple[Change, ...]
    lost: tuple[Change, ...]
    reordered: bool
    things_added: int


def align(donor: EncodedPrompt, target: EncodedPrompt) -> Alignment:
    """Compares two prompts; swapping them swaps `gained` and `lost` and negates `things_added`.

    Each phrase of the one is matched with at most one of the other; a word weighs 1, less what comes near it
    there. To a word of the lexicon that is one that says the same, to another one whose state is alike. Word
    order within a phrase does not count, nor do function words and punctuation.
    """
    if donor.prompt > target.prompt:  # one way round, so that ties end alike
        found = align(target, donor)
        return Alignment(found.lost, found.gained, found.reordered, -found.things_added)
    here, there = _Side(donor), _Side(target)
    cosines = here.states @ there.states.T
    said = _said(here.words, there.words, cosines)
    said_back = _said(there.words, here.words, cosines.T)
    likeness = _likeness(here, there, said, said_back)
    pairs = _matched(likeness)
    lost, gained = np.ones(len(here.words)), np.ones(len(there.words))
    for i, j in ((0, 0), (1, 1), *((2 + i, 2 + j) for i, j in pairs)):
        rows, columns = here.parts[i], there.parts[j]
        there_too, here_too = said[rows, columns], said_back[columns, rows]
        lost[rows] = _unsaid(there_too, here_too)
        gained[columns] = _unsaid(here_too, there_too)
    return Alignment(
        gained=_changes(there.words, gained),
        lost=_changes(here.words, lost),
        reordered=any(j > k for j, k in pairwise(j for i, j in pairs if likeness[i, j] > 0)),
        things_added=there.reading.things - here.reading.things,
    )


def on_tokens(changes: Sequence[Change], offsets: Sequence[Range]) -> tuple[TokenChange, ...]:
    """The tokens that the words consist of, by position. All tokens of a word share its weight.

    A token of several words has the largest of their weights. Words beyond an encoder's last token have none.
    """
    found = []
    for index, touched in enumerate(_touched([(change.start, change.end) for change in changes], offsets)):
        if touched:
            change = max((changes[i] for i in touched), key=lambda change: change.weight)
            found.append(TokenChange(index, change.weight, change.category))
    return tuple(found)


def _touched(words: Sequence[Range], offsets: Sequence[Range]) -> list[range]:
    """For each token, the words that it shares a character with; words are in order and apart."""
    starts, ends = [start for start, _ in words], [end for _, end in words]
    return [
        range(bisect_right(ends, start), bisect_left(starts, end)) if start < end else range(0)
        for start, end in offsets
    ]


class _Side:
    """A prompt's words, phrase after phrase.

    Attributes:
        states: float32 [W, D], of length 1; 0 for a word that the encoder did not see.
        parts: where the words of the background, of the framing and of each phrase lie.
        importance: float64 [W], of each word for what a phrase is about.
    """

    def __init__(self, encoded: EncodedPrompt) -> None:
        self.reading: Reading = read(encoded.prompt)
        groups = (self.reading.background, self.reading.framing, *self.reading.phrases)
        self.words: list[Word] = [word for group in groups for word in group]
        bounds = np.cumsum([0, *map(len, groups)]).tolist()
        self.parts = [slice(start, end) for start, end in pairwise(bounds)]
        self.states = _states(self.words, encoded)
        self.importance = np.array([0.0 if w.slight else NAME if w.names else 1.0 for w in self.words])


def _states(words: Sequence[Word], encoded: EncodedPrompt) -> Floats:
    """[W, D]: the mean of each word's tokens' states, scaled to length 1."""
    order = sorted(range(len(words)), key=lambda i: words[i].start)
    touched = _touched([(words[i].start, words[i].end) for i in order], encoded.offsets)
    sums = np.zeros((len(words), encoded.states.shape[1]), dtype=np.float32)
    pairs = [(order[place], token) for token, places in enumerate(touched) for place in places]
    if pairs:
        rows, tokens = np.array(pairs).T
        np.add.at(sums, rows, encoded.states[tokens])
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    unit: Floats = sums / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def _said(words: Sequence[Word], others: Sequence[Word], cosines: Floats) -> Matrix:
    """[W, V]: how much of what each of `words` says each of `others` says."""
    same_sense = _equal(words, others, lambda word: (word.sense, word.negated))
    same_text = _equal(words, others, lambda word: word.text)
    near = _equal(words, others, lambda word: word.negated)
    near &= np.logical_and.outer([_by_state(word) for word in words], [_by_state(word) for word in others])
    implied = np.logical_and.outer(
        [word.sense == lexicon.MOVE and not word.negated for word in words],
        [_moves(word) for word in others],
    )
    said = np.where(near, np.clip((cosines - UNLIKE) / (ALIKE - UNLIKE), 0, 1) * NEARLY, 0).astype(np.float64)
    said[same_sense | implied] = NEARLY
    said[same_sense & same_text] = 1
    return said


def _by_state(word: Word) -> bool:
    """Whether its state tells what it says; to an English encoder, all that it cannot read is the same."""
    return not word.known and word.text.isascii()


def _moves(word: Word) -> bool:
    return word.category is Category.MOTION and word.sense != lexicon.STILL and not word.negated


def _equal(words: Sequence[Word], others: Sequence[Word], of: Callable[[Word], object]) -> NDArray[np.bool_]:
    """[W, V]: whether two words are equal in something."""
    numbers: dict[object, int] = {}
    rows, columns = (
        np.array([numbers.setdefault(of(word), len(numbers)) for word in side], dtype=np.int64)
        for side in (words, others)
    )
    return np.equal.outer(rows, columns)


def _likeness(here: _Side, there: _Side, said: Matrix, said_back: Matrix) -> Matrix:
    """[P, Q]: how much two phrases say alike, in words: their sum over both, names counting more."""
    shape = len(here.reading.phrases), len(there.reading.phrases)
    if not min(shape):
        return np.zeros(shape)
    return _heard(here, there, said) + _heard(there, here, said_back).T


def _heard(here: _Side, there: _Side, said: Matrix) -> Matrix:
    """[P, Q]: how much of what a phrase says another says."""
    rows, columns = ([part.start for part in side.parts[2:]] for side in (here, there))
    first, first_there = rows[0], columns[0]
    said = np.where(said >= NEARLY, 1, said)  # whichever word for it
    best = np.maximum.reduceat(said[first:, first_there:], np.array(columns) - first_there, axis=1)
    heard: Matrix = np.add.reduceat(here.importance[first:, None] * best, np.array(rows) - first, axis=0)
    return heard


def _matched(likeness: Matrix) -> list[tuple[int, int]]:
    """Matches each phrase with another, for a large sum; of equal ones those that stand in order.

    The likest first, then by twos for as long as an exchange says more.
    """
    size = max(likeness.shape)
    square = np.zeros((size, size))
    square[: likeness.shape[0], : likeness.shape[1]] = np.round(likeness, 6)
    gain = square.tolist()
    match: dict[int, int] = {}
    for i, j in sorted(np.ndindex(size, size), key=lambda at: (-gain[at[0]][at[1]], abs(at[0] - at[1]), at)):
        if i not in match and j not in match.values():
            match[i] = j
    improved = True
    while improved:
        improved = False
        for i, k in combinations(range(size), 2):
            now, exchanged = gain[i][match[i]] + gain[k][match[k]], gain[i][match[k]] + gain[k][match[i]]
            if exchanged > now + 1e-6:
                match[i], match[k] = match[k], match[i]
                improved = True
    rows, columns = likeness.shape
    return [(i, j) for i, j in sorted(match.items()) if i < rows and j < columns]


def _unsaid(said: Matrix, back: Matrix) -> NDArray[np.float64]:
    """[W]: how new each word is to the phrase that its own is matched with.

    Args:
        said, back: [W, V] and [V, W], how much of each word the others say, and the other way round.
    """
    most = said.max(axis=1, initial=0)
    # A word that has its own counterpart is not half of another one too.
    free = back.max(axis=1, initial=0) < NEARLY
    unsaid: NDArray[np.float64] = 1 - np.where(most >= NEARLY, most, said[:, free].max(axis=1, initial=0))
    return unsaid


def _changes(words: Sequence[Word], weights: NDArray[np.float64]) -> tuple[Change, ...]:
    found = [
        Change(word.start, word.end, min(weight, SLIGHT) if word.slight else weight, word.category)
        for word, weight in zip(words, weights.tolist(), strict=True)
        if weight > 0
    ]
    return tuple(sorted(found, key=lambda change: change.start))
