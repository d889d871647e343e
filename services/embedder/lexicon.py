"""What embeddings do not tell: which words say the same of one attribute, and which words ask for nothing.

Sentence encoders place words by the company they keep, and the values of one attribute keep the same company:
to MiniLM red is nearer to blue than to crimson. The words here decide colours, sizes, motion, numbers and
negation, the things a video visibly gets right or wrong; everything else is left to the embeddings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto


class Category(Enum):
    """What a word is about; the names are those of TokenCategory."""

    COLOUR = auto()
    SIZE = auto()
    MOTION = auto()
    NUMBER = auto()
    NEGATION = auto()
    BACKGROUND = auto()
    OTHER = auto()


# One line for each meaning, which bears the name of its first word. Verbs and nouns in their plainest form.
_MEANINGS = {
    Category.COLOUR: """
        red crimson scarlet ruby cherry vermilion maroon
        orange tangerine amber
        yellow golden gold lemon
        green emerald lime jade olive
        cyan turquoise teal aqua
        blue azure navy cobalt sapphire indigo
        purple violet magenta lilac lavender
        pink rose fuchsia
        brown chestnut beige tan
        white ivory snowy
        black ebony
        gray grey silver ashen
    """,
    Category.SIZE: """
        big large huge giant enormous massive gigantic
        small little tiny mini miniature petite
        tall high
        short low
        long
        wide broad
        narrow thin slim
        thick
    """,
    Category.MOTION: """
        left leftward leftwards westward
        right rightward rightwards eastward
        up upward upwards rise ascend climb
        down downward downwards fall sink descend drop
        forward forwards
        backward backwards
        clockwise
        counterclockwise anticlockwise
        spin rotate revolve twirl
        fast quick quickly rapid rapidly swift swiftly
        slow slowly leisurely
        move slide drift go glide travel float motion
        still static motionless stationary immobile unmoving stand rest stay remain
    """,
    Category.NUMBER: """
        two 2 pair couple
        three 3
        four 4
        five 5
        six 6
        seven 7
        eight 8
        nine 9
        ten 10
        dozen 12 twelve
        many several numerous
    """,
    Category.NEGATION: """
        not no without never cannot
    """,
    Category.BACKGROUND: """
        day daytime daylight noon midday
        night nighttime midnight
        dawn sunrise daybreak
        dusk sunset twilight
    """,
    Category.OTHER: """
        circle circular round disc disk ball dot orb sphere
        square box block cube tile
        triangle triangular pyramid wedge
        above
        below under underneath beneath
        inside
        outside
    """,
}
MOVE, STILL = "move", "still"
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}

# Nouns that are where something is, rather than what is there.
_SURROUNDINGS = """
sky horizon landscape scenery beach shore coast sea ocean lake river forest jungle field meadow desert
mountain hill valley street road city town village park garden room kitchen studio space snow rain fog
"""
# Between the words of one thing and those of another, as articles are too.
_DIVIDERS = """
and or but while whilst with without then plus also next beside besides near by as for
in on at over against upon onto into through from above below under underneath beneath inside outside
which that who whose where when show shows showing shown see sees
"""
# Dividers that are something to be seen themselves.
_RELATIONS = "above below under underneath beneath inside outside"
_ARTICLES = "a an the one another"
_FUNCTION_WORDS = """
this these those it its itself they them their he him his she her we us our i me my you your
be is are was were been being am do does did have has had will would can could
of to there all only just very whole everything everywhere around behind across together front along away
colour colours color colors coloured colored painted filled size sized
"""
# They say that something is to be shown, how, or that it is a thing, not what. Little depends on them.
_MEDIA = "video film clip movie animation cartoon footage shot picture image scene graphic style quality"
_FRAMING = "test simple plain flat minimal 2d 4k 8k please make look place background backdrop surrounding"
# They name a thing once something else is said of it: "a red shape".
_PLACEHOLDERS = "shape piece patch object thing form figure"
# Before a colour only a shade of it; hardly another colour, but for the pale ones.
_SHADES = """
bright vivid deep dark plain pure jet pitch royal neon light pale pastel
snow ash stone grass leaf chocolate coffee midnight
"""
_PALE = "light pale pastel"


@dataclass(frozen=True)
class Entry:
    """What is known of a word. Two words of equal `meaning` say the same of one attribute."""

    category: Category
    meaning: str | None = None


_ENTRIES = {word: Entry(Category.BACKGROUND) for word in _SURROUNDINGS.split()} | {
    word: Entry(category, line.split()[0])
    for category, lines in _MEANINGS.items()
    for line in lines.split("\n")
    for word in line.split()
}
DIVIDERS = frozenset(_DIVIDERS.split())
ARTICLES = frozenset(_ARTICLES.split())
MEDIA = frozenset(_MEDIA.split())
PLACEHOLDERS = frozenset(_PLACEHOLDERS.split())
FRAMING = MEDIA | PLACEHOLDERS | frozenset(_FRAMING.split())
RELATIVES = frozenset({"that", "which", "who"})
SHADES = frozenset(_SHADES.split())
PALE = frozenset(_PALE.split())
# With these a phrase is about the surroundings, whatever else it says ...
BACKDROPS = frozenset({"background", "backdrop", "surrounding"})
# ... and with these, or after these, if a colour is all that it says.
AROUND = frozenset({"around", "behind", "everything", "everywhere", "scene"})
ON = frozenset({"on", "over", "against", "upon"})
_MUTE = (DIVIDERS | ARTICLES | frozenset(_FUNCTION_WORDS.split())) - frozenset(
    f"{_RELATIONS} without".split()
)


def _inflected(word: str, category: Category) -> set[str]:
    """Forms that a word may take, and some that none takes; an adjective has one: "shorts" are not short."""
    nouns = {word + "s", word + "es", word[:-1] + "ies"}
    if category in (Category.OTHER, Category.BACKGROUND):
        return nouns
    if category is not Category.MOTION:
        return set()
    stems = {word, word.removesuffix("e"), word + word[-1]}
    return nouns | {stem + ending for stem in stems for ending in ("ing", "ed")}


_PLAIN = (
    {form: word for word in FRAMING for form in _inflected(word, Category.MOTION)}
    | {form: word for word, known in _ENTRIES.items() for form in _inflected(word, known.category)}
    | {word: word for word in (*_ENTRIES, *_MUTE, *FRAMING)}
)
_PLURAL = re.compile(r".{2,}[^sui]s")


def plain(word: str) -> str:
    """The form under which the lexicon knows a word; one that it does not know loses a plural s.

    Args:
        word: case-folded.
    """
    if word in _PLAIN:
        return _PLAIN[word]
    return word[:-1] if _PLURAL.fullmatch(word) and word[:-1] not in _PLAIN else word


def is_mute(plain_word: str) -> bool:
    """Whether a word alone names nothing to be seen."""
    return plain_word in _MUTE


def entry(plain_word: str) -> Entry:
    """What is known of a word in its plain form."""
    if plain_word.isdigit() and plain_word not in _ENTRIES:
        return Entry(Category.NUMBER, plain_word)
    if plain_word.endswith(("n't", "n’t")):
        return _ENTRIES["not"]
    return _ENTRIES.get(plain_word, Entry(Category.OTHER))
