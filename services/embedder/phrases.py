"""Division of a prompt into phrases: the surroundings, each thing, and the framing around them.

All functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

import regex

from services.embedder.lexicon import (
    AROUND,
    ARTICLES,
    BACKDROPS,
    CONJUNCTIONS,
    DIVIDERS,
    FRAMING,
    MEDIA,
    MOVE,
    ON,
    OPPOSITE,
    PALE,
    PLACEHOLDERS,
    REGIONS,
    RELATIVES,
    SHADES,
    STILL,
    Category,
    Entry,
    Lexicon,
    is_mute,
)

MAX_PHRASES = 32
"""Upper bound on the phrases of a prompt; further ones are read as one. An enumeration has no end, and the
time to match phrases grows with the cube of their number."""

# Letters and digits with their diacritics, which Python's `re` takes for marks.
_LETTERS = r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*"
_EMOJI = r"\p{So}(?:\u200d\p{So}|[\p{M}\U0001F3FB-\U0001F3FF])*"
_MARKS = frozenset('.,;:!?()[]{}…—–"“”/|&+\n')  # that end a clause
# A word, with an apostrophe inside; an emoji, which says as much as a word; or a mark.
_PIECE = regex.compile(rf"{_LETTERS}(?:['’]{_LETTERS})*|{_EMOJI}|[{regex.escape(''.join(sorted(_MARKS)))}]")
_TRAITS = frozenset({Category.COLOUR, Category.SIZE, Category.NUMBER})
# Attributes that surroundings have, too.
_LOOKS = frozenset({Category.COLOUR, Category.TEXTURE})


@dataclass(frozen=True)
class Word:
    """A word that carries meaning.

    Attributes:
        start, end: characters [start, end) of the prompt.
        sense: equal for two words that mean the same.
        known: whether the lexicon decides which words mean the same; otherwise embeddings may.
        names: whether it may name a thing.
        framing: whether it requests a display rather than what is displayed.
        slight: whether little depends on it.
        negated: whether a negation applies to it.
    """

    start: int
    end: int
    text: str
    category: Category
    sense: str
    known: bool
    names: bool
    framing: bool = False
    slight: bool = False
    negated: bool = False


@dataclass(frozen=True)
class Reading:
    """Phrases of a prompt. Each word that carries meaning is in exactly one of them.

    Attributes:
        background: words that describe the surroundings.
        framing: words that request nothing visible, such as those of "a video of".
        phrases: words that describe each thing, at most MAX_PHRASES phrases in order; none is empty.
        things: number of things named, without those that are negated.
    """

    background: tuple[Word, ...]
    framing: tuple[Word, ...]
    phrases: tuple[tuple[Word, ...], ...]
    things: int


@lru_cache(maxsize=64)  # one target is compared with many donors, and popular donors with many targets
def read_prompt(prompt: str, lexicon: Lexicon) -> Reading:
    """Divides a prompt into phrases."""
    reader = _Reader()
    clauses = [*_split_clauses(prompt, lexicon), _Clause()]
    for clause, following in pairwise(clauses):
        reader.add(clause, following)
    return reader.finish()


@dataclass
class _Clause:
    """Words from one divider to the next.

    Attributes:
        opener: the divider before it.
        detached: whether a mark or a conjunction separates it from the clause before it.
        article: whether it begins with an article.
        senses: all its words in their base form, and their meanings.
        words: its words that carry meaning.
    """

    opener: str = ""
    detached: bool = False
    article: bool = False
    senses: set[str] = field(default_factory=set)
    words: list[Word] = field(default_factory=list)

    @property
    def content(self) -> list[Word]:
        return [word for word in self.words if not word.framing]

    @property
    def categories(self) -> set[Category]:
        return {word.category for word in self.content}

    @property
    def begun(self) -> bool:
        """Whether a further article belongs to another thing, unlike the one in "without a hat"."""
        return any(
            word.category is not Category.NEGATION and word.text not in DIVIDERS for word in self.words
        )

    @property
    def names(self) -> list[Word]:
        """Words that name things. After an article even "building" does."""
        named = [word for word in self.content if word.names]
        if not named and self.article:
            named = [w for w in self.content if w.category is Category.OTHER and not w.known][-1:]
        if not named and (self.article or self.content):
            named = [word for word in self.words if word.text in PLACEHOLDERS]
        return named

    @property
    def about_surroundings(self) -> bool:
        if self.senses & BACKDROPS:
            return True
        if self.names:
            return self.names[-1].category is Category.BACKGROUND
        described = self.categories - {Category.MOTION}
        only_looks = bool(described & _LOOKS) and described <= {*_LOOKS, Category.BACKGROUND}
        return only_looks and (self.opener in ON or bool(self.senses & AROUND))


def _split_clauses(prompt: str, lexicon: Lexicon) -> Iterator[_Clause]:
    """Returns the clauses that contain words with a meaning."""
    clause = _Clause()
    for text, start, end in _split_words(prompt, lexicon):
        is_mark = text in _MARKS
        if is_mark or text in DIVIDERS or (text in ARTICLES and clause.begun):
            if clause.words:
                yield _resolve(clause)
            detached = is_mark or text in CONJUNCTIONS or (clause.detached and not clause.words)
            clause = _Clause(opener=text, detached=detached)
        if text in ARTICLES:
            clause.article = True  # the article of another thing would have opened a new clause
        if not is_mark:
            entry = lexicon.look_up(text)
            clause.senses |= {text, entry.meaning or text}
            if not is_mute(text):
                clause.words.append(_make_word(text, entry, start, end))
    if clause.words:
        yield _resolve(clause)


def _split_words(prompt: str, lexicon: Lexicon) -> Iterator[tuple[str, int, int]]:
    """Returns words and compounds in their base form, and marks, with their characters [start, end).

    The characters of "on the left" are those of "left".
    """
    pieces = [*_PIECE.finditer(prompt)]
    texts = [piece[0].casefold() for piece in pieces]
    at = 0
    while at < len(pieces):
        after = at + lexicon.match_compound(texts, at)
        text = lexicon.to_plain(" ".join(texts[at:after]))
        while at < after - 1 and is_mute(texts[at]):
            at += 1
        yield text, pieces[at].start(), pieces[after - 1].end()
        at = after


def _make_word(text: str, entry: Entry, start: int, end: int) -> Word:
    sense = entry.meaning or text
    known = entry.meaning is not None
    framing = bool({text, sense} & FRAMING)
    names = (
        entry.category in (Category.OTHER, Category.BACKGROUND)
        and not framing
        and text not in DIVIDERS
        and (known or not (text.endswith(("ing", "ly", "ed")) and len(text) > 4))
    )
    return Word(start, end, text, entry.category, sense, known, names, framing, framing)


def _resolve(clause: _Clause) -> _Clause:
    """Resolves meanings that depend on neighbouring words; returns the clause."""
    words = clause.words = _join_regions(_apply_negations(clause.words))
    if clause.opener == "from":
        clause.words = words = [_reverse_direction(words[0]), *words[1:]] if words else []
    for i in reversed(range(len(words) - 1)):
        word, after = words[i], words[i + 1]
        if after.category is Category.COLOUR and word.text in SHADES:
            slight = word.text not in PALE
            shade = replace(word, category=Category.COLOUR, sense=word.text, known=True, names=False)
            words[i] = replace(shade, slight=slight)
        elif word.category is Category.SIZE and after.text in MEDIA:
            words[i] = replace(word, framing=True, slight=True)  # a short film
        elif _is_known_thing(word) and _is_known_thing(after):
            words[i + 1] = replace(after, slight=True)  # a triangular block
    return clause


def _join_regions(words: list[Word]) -> list[Word]:
    """Joins a place in the frame with a word that adds nothing to it: "upper left corner"."""
    joined: list[Word] = []
    for word in words:
        if joined and joined[-1].category is Category.PLACE and word.text in REGIONS:
            joined[-1] = replace(joined[-1], end=word.end)
        else:
            joined.append(word)
    return joined


def _apply_negations(words: list[Word]) -> list[Word]:
    """Negates words: "no" applies up to the thing it names, "not" to the end of the clause."""
    resolved: list[Word] = []
    by: int | None = None  # index of the negation
    for word in words:
        if word.category is Category.NEGATION:
            by = len(resolved)
        elif by is not None:
            if resolved[by].text in ("no", "without") and resolved[-1].names and not word.names:
                by = None
            elif word.sense in (MOVE, STILL):
                # Not moving means standing still, and the reverse.
                word = replace(word, sense=STILL if word.sense == MOVE else MOVE)
                resolved[by] = replace(word, start=resolved[by].start, end=resolved[by].end)
                by = None
            else:
                word = replace(word, negated=True)
        resolved.append(word)
    return resolved


def _reverse_direction(word: Word) -> Word:
    """Returns the motion of a thing that comes from a side: from the left is to the right."""
    return replace(word, sense=OPPOSITE.get(word.sense, word.sense))


def _is_known_thing(word: Word) -> bool:
    return word.names and word.known and word.category is Category.OTHER


class _Reader:
    """Joins clauses to phrases: "a circle, small and red, moving left" is three clauses and one phrase."""

    def __init__(self) -> None:
        self._background: list[Word] = []
        self._framing: list[Word] = []
        self._phrases: list[list[Word]] = []
        self._things = 0
        self._pending: list[Word] = []  # words that describe the next thing
        self._at_background = False

    def add(self, clause: _Clause, following: _Clause) -> None:
        """Adds a clause.

        Args:
            following: the clause after it; one without words at the end of the prompt.
        """
        names = set(clause.names)
        content = [word for word in clause.words if not word.framing or word in names]
        self._framing += [word for word in clause.words if word.framing and word not in names]
        if clause.about_surroundings:
            # The thing before it moves, not the background.
            moves = Category.MOTION if self._phrases else None
            self._extend([word for word in content if word.category is moves])
            self._background += [_to_background(word) for word in content if word.category is not moves]
            self._at_background = True
        elif names and not self._is_relative(clause):
            self._phrases.append([*self._pending, *content])
            self._things += any(not word.negated for word in names)
            self._pending = []
            self._at_background = False
        elif self._continues_background(clause):
            self._background += map(_to_background, content)
        elif self._is_relative(clause) or self._describes_last(clause, following):
            self._extend(content)
        else:
            self._pending += content

    def finish(self) -> Reading:
        self._extend(self._pending)
        phrases = self._phrases[: MAX_PHRASES - 1]
        if rest := [word for phrase in self._phrases[MAX_PHRASES - 1 :] for word in phrase]:
            phrases.append(rest)
        return Reading(
            tuple(self._background), tuple(self._framing), tuple(map(tuple, phrases)), self._things
        )

    def _extend(self, words: Sequence[Word]) -> None:
        """Adds words to the last phrase."""
        if words and self._phrases:
            self._phrases[-1] += words
        elif words:
            self._phrases.append([*words])

    def _is_relative(self, clause: _Clause) -> bool:
        """Returns whether a clause continues the last phrase, as in "a dog that runs"."""
        relative = clause.opener in RELATIVES and not clause.article
        return relative and bool(self._phrases) and not self._at_background

    def _continues_background(self, clause: _Clause) -> bool:
        """Returns whether a clause describes the surroundings before it: "background: red", "with dots"."""
        if not self._at_background or not clause.categories or not clause.categories <= _LOOKS:
            return False
        described = any(word.known for word in self._background)
        return not described or clause.categories == {Category.TEXTURE}

    def _describes_last(self, clause: _Clause, following: _Clause) -> bool:
        """Returns whether a clause that names nothing describes the thing before it, not the one after it.

        The traits of a thing precede its motion, and it has one colour and one size. A place after a pause
        belongs to the thing that follows directly: "a cat sits, and in the upper left a dog runs".
        """
        if not self._phrases:
            return False
        if clause.detached and clause.categories == {Category.PLACE}:
            thing_follows = following.names and not following.about_surroundings
            return not (thing_follows and following.opener in (",", *ARTICLES))
        traits = clause.categories & _TRAITS
        described = {word.category for word in self._phrases[-1]}
        return not traits or not (clause.article or Category.MOTION in described or traits & described)


def _to_background(word: Word) -> Word:
    if word.category in (Category.NEGATION, Category.TEXTURE):
        return word
    return replace(word, category=Category.BACKGROUND)
