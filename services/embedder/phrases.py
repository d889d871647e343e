"""A prompt's words, by what they are said of: the surroundings, each thing, or nothing in the video. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from services.embedder import lexicon
from services.embedder.lexicon import Category

# Phrases beyond are read as one: an enumeration has no end, and matching takes the square.
MAX_PHRASES = 32

# Letters and digits, with an apostrophe inside a word; or a mark that ends a clause.
_PIECE = re.compile(r"(?P<word>[^\W_]+(?:['’][^\W_]+)*)|[.,;:!?()\[\]{}…—–\"“”/|&+\n]")
_TRAITS = frozenset({Category.COLOUR, Category.SIZE, Category.NUMBER})


@dataclass(frozen=True)
class Word:
    """A word that says something.

    Attributes:
        start, end: characters [start, end) of the prompt.
        sense: equal for two words that say the same.
        known: the lexicon decides what says the same; otherwise embeddings may.
        names: it may name a thing.
        framing: it is not about what is to be seen, but that something is.
        slight: little depends on it.
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
    """A prompt's phrases. Each of its words that says something is in one of them.

    Attributes:
        background: the words about the surroundings.
        framing: the words around it all, which ask for next to nothing: "a video of".
        phrases: the words said of each thing, at most MAX_PHRASES, in order; none is empty.
        things: how many things are named, not counting those that are said to be absent.
    """

    background: tuple[Word, ...]
    framing: tuple[Word, ...]
    phrases: tuple[tuple[Word, ...], ...]
    things: int


@lru_cache(maxsize=64)  # one target, many donors; and popular donors
def read(prompt: str) -> Reading:
    """Divides a prompt into phrases."""
    reader = _Reader()
    for clause in _clauses(prompt):
        reader.take(clause)
    return reader.reading()


@dataclass
class _Clause:
    """The words from one divider to the next.

    Attributes:
        opener: the divider before it.
        article: it begins with one.
        heard: all its words in their plain form.
        words: those of them that say something.
    """

    opener: str = ""
    article: bool = False
    heard: set[str] = field(default_factory=set)
    words: list[Word] = field(default_factory=list)

    @property
    def content(self) -> list[Word]:
        return [word for word in self.words if not word.framing]

    @property
    def categories(self) -> set[Category]:
        return {word.category for word in self.content}

    @property
    def begun(self) -> bool:
        """Whether an article now is another thing's: not that of "without a hat"."""
        return any(
            word.category is not Category.NEGATION and word.text not in lexicon.DIVIDERS
            for word in self.words
        )

    @property
    def names(self) -> list[Word]:
        """The words that name things. After an article even "building" does."""
        named = [word for word in self.content if word.names]
        if not named and self.article:
            named = [word for word in self.content if word.category is Category.OTHER][-1:]
        if not named and (self.article or self.content):
            named = [word for word in self.words if word.text in lexicon.PLACEHOLDERS]
        return named

    @property
    def about_surroundings(self) -> bool:
        if self.heard & lexicon.BACKDROPS:
            return True
        if self.names:
            return self.names[-1].category is Category.BACKGROUND
        only_colour = self.categories - {Category.MOTION} == {Category.COLOUR}
        return only_colour and (self.opener in lexicon.ON or bool(self.heard & lexicon.AROUND))


def _clauses(prompt: str) -> Iterator[_Clause]:
    clause = _Clause()
    for match in _PIECE.finditer(prompt):
        text = lexicon.plain(match[0].casefold())
        if not match["word"] or text in lexicon.DIVIDERS or (text in lexicon.ARTICLES and clause.begun):
            yield _understood(clause)
            clause = _Clause(opener=text)
        if text in lexicon.ARTICLES:
            clause.article = True  # were it another thing's, there would be a clause of its own
        if match["word"]:
            clause.heard.add(text)
            if not lexicon.is_mute(text):
                clause.words.append(_word(text, *match.span()))
    yield _understood(clause)


def _word(text: str, start: int, end: int) -> Word:
    entry = lexicon.entry(text)
    framing = text in lexicon.FRAMING
    names = (
        entry.category in (Category.OTHER, Category.BACKGROUND)
        and not framing
        and text not in lexicon.DIVIDERS
        and not (text.endswith(("ing", "ly", "ed")) and len(text) > 4)
    )
    known = entry.meaning is not None
    return Word(start, end, text, entry.category, entry.meaning or text, known, names, framing, framing)


def _understood(clause: _Clause) -> _Clause:
    """The clause with what its words mean beside one another."""
    words = clause.words = _negated(clause.words)
    if clause.opener == "from":
        clause.words = words = [_came_from(words[0]), *words[1:]] if words else []
    for i in reversed(range(len(words) - 1)):
        word, after = words[i], words[i + 1]
        if after.category is Category.COLOUR and word.text in lexicon.SHADES:
            slight = word.text not in lexicon.PALE
            shade = replace(word, category=Category.COLOUR, sense=word.text, known=True, names=False)
            words[i] = replace(shade, slight=slight)
        elif word.category is Category.SIZE and after.text in lexicon.MEDIA:
            words[i] = replace(word, framing=True, slight=True)  # a short film
        elif _is_shape(word) and _is_shape(after):
            words[i + 1] = replace(after, slight=True)  # a triangular block
    return clause


def _negated(words: list[Word]) -> list[Word]:
    """What "no" says is up to the thing it names, what "not" says up to the clause's end."""
    found: list[Word] = []
    by: int | None = None  # the negation's place
    for word in words:
        if word.category is Category.NEGATION:
            by = len(found)
        elif by is not None:
            if found[by].text in ("no", "without") and found[-1].names and not word.names:
                by = None
            elif word.sense in (lexicon.MOVE, lexicon.STILL):
                # Another word for standing still, or for moving.
                word = replace(word, sense=lexicon.STILL if word.sense == lexicon.MOVE else lexicon.MOVE)
                found[by] = replace(word, start=found[by].start, end=found[by].end)
                by = None
            else:
                word = replace(word, negated=True)
        found.append(word)
    return found


def _came_from(word: Word) -> Word:
    return replace(word, sense=lexicon.OPPOSITE.get(word.sense, word.sense))


def _is_shape(word: Word) -> bool:
    return word.names and word.known and word.category is Category.OTHER


class _Reader:
    """Puts clauses together: "a circle, small and red, moving left" is three of them and one phrase."""

    def __init__(self) -> None:
        self._background: list[Word] = []
        self._framing: list[Word] = []
        self._phrases: list[list[Word]] = []
        self._things = 0
        self._waiting: list[Word] = []  # for the thing that they are said of
        self._at_background = False

    def take(self, clause: _Clause) -> None:
        names = set(clause.names)
        content = [word for word in clause.words if not word.framing or word in names]
        self._framing += [word for word in clause.words if word.framing and word not in names]
        if clause.about_surroundings:
            # What moves on a black background is the thing before it.
            moves = Category.MOTION if self._phrases else None
            self._extend([word for word in content if word.category is moves])
            self._background += [_of_background(word) for word in content if word.category is not moves]
            self._at_background = True
        elif names and not self._goes_on(clause):
            self._phrases.append([*self._waiting, *content])
            self._things += any(not word.negated for word in names)
            self._waiting = []
            self._at_background = False
        elif self._colours_background(clause):
            self._background += map(_of_background, content)
        elif self._goes_on(clause) or self._said_of_last(clause):
            self._extend(content)
        else:
            self._waiting += content

    def reading(self) -> Reading:
        self._extend(self._waiting)
        phrases = self._phrases[: MAX_PHRASES - 1]
        if rest := [word for phrase in self._phrases[MAX_PHRASES - 1 :] for word in phrase]:
            phrases.append(rest)
        return Reading(
            tuple(self._background), tuple(self._framing), tuple(map(tuple, phrases)), self._things
        )

    def _extend(self, words: Sequence[Word]) -> None:
        """Says the words of the last thing too."""
        if words and self._phrases:
            self._phrases[-1] += words
        elif words:
            self._phrases.append([*words])

    def _goes_on(self, clause: _Clause) -> bool:
        """Whether it is what follows in "a dog that runs"."""
        relative = clause.opener in lexicon.RELATIVES and not clause.article
        return relative and bool(self._phrases) and not self._at_background

    def _colours_background(self, clause: _Clause) -> bool:
        """Whether it goes on from "background:"."""
        return (
            self._at_background
            and clause.categories == {Category.COLOUR}
            and not any(word.known for word in self._background)
        )

    def _said_of_last(self, clause: _Clause) -> bool:
        """Whether a clause that names nothing is about the thing before it, not the one after it.

        A thing is described before it is said to move, and has one colour and one size.
        """
        if not self._phrases:
            return False
        traits = clause.categories & _TRAITS
        said = {word.category for word in self._phrases[-1]}
        return not traits or not (clause.article or Category.MOTION in said or traits & said)


def _of_background(word: Word) -> Word:
    if word.category is Category.NEGATION:
        return word
    return replace(word, category=Category.BACKGROUND)
