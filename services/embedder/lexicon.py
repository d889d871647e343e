"""Word knowledge that embeddings lack: synonyms within one attribute, and words that request nothing visible.

Sentence encoders place words by their contexts, and the values of one attribute share their contexts: for
MiniLM, red is nearer to blue than to crimson. The lexicon decides colours, sizes, motion, numbers, negation,
textures, places in the frame, styles, views of the camera and moods, which a video visibly gets right or
wrong; embeddings decide everything else. Synonyms that hold in the world of one model only, such as "ball"
and "circle", belong to that model's lexicon file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path


class Category(Enum):
    """Attribute that a word describes; the names are those of TokenCategory."""

    COLOUR = auto()
    SIZE = auto()
    MOTION = auto()
    NUMBER = auto()
    NEGATION = auto()
    BACKGROUND = auto()
    TEXTURE = auto()
    PLACE = auto()
    STYLE = auto()
    CAMERA = auto()
    MOOD = auto()
    OTHER = auto()


# One line for each meaning, named by its first word. Verbs and nouns in their base form. An underscore joins
# the words of a compound, which is known as a whole: spaces or hyphens may separate its words in a prompt.
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
        up upward upwards rise ascend climb soar
        down downward downwards fall sink descend drop plunge
        forward forwards
        backward backwards
        clockwise
        counterclockwise anticlockwise
        spin rotate revolve twirl
        fast quick quickly rapid rapidly swift swiftly
        slow slowly leisurely
        move slide drift go come glide travel float motion
        still static motionless stationary immobile unmoving frozen stand rest stay remain put
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
    Category.TEXTURE: """
        striped stripe stripy
        checkered chequered checkerboard
        dotted polka_dot
    """,
    Category.PLACE: """
        upper_left top_left
        upper_right top_right
        lower_left bottom_left
        lower_right bottom_right
        upper_half top_half
        lower_half bottom_half
        left_side left_half on_the_left at_the_left
        right_side right_half on_the_right at_the_right
        center centre middle
    """,
    Category.STYLE: """
        anime manga
        watercolor watercolour
        oil_painting oil_on_canvas
        pencil_sketch pencil_drawing sketch
        pixel_art 8_bit
        claymation stop_motion
        comic comic_book
        photorealistic realistic photorealism lifelike
        3d_render 3d_rendered cgi
        monochrome
        noir film_noir
        vintage retro
        cyberpunk
        steampunk
        impressionist impressionism
        surreal surrealist surrealism
        minimalist minimalistic
        low_poly
        cel_shaded
        origami
    """,
    Category.CAMERA: """
        close_up closeup extreme_close_up
        wide_shot wide_angle long_shot establishing_shot
        medium_shot
        aerial aerial_view aerial_shot drone_shot drone_view bird's_eye_view
        top_down overhead_view overhead_shot
        low_angle worm's_eye_view
        high_angle
        panning panning_shot
        zoom_in zooms_in zooming_in
        zoom_out zooms_out zooming_out
        tracking_shot dolly_shot
        handheld hand_held
        first_person pov point_of_view
        time_lapse timelapse
        macro macro_shot
        shallow_focus bokeh shallow_depth_of_field
    """,
    Category.MOOD: """
        gloomy moody somber sombre bleak dreary
        melancholic melancholy
        cheerful joyful joyous upbeat
        dreamy dreamlike ethereal
        eerie creepy spooky ominous sinister
        dramatic epic
        serene peaceful tranquil calm
        mysterious
        romantic
        cozy cosy
        golden_hour
        backlit
    """,
    Category.OTHER: """
        above
        below under underneath beneath
        inside
        outside
    """,
}
MOVE, STILL = "move", "still"
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}

# Nouns that name a place rather than a thing in it.
_SURROUNDINGS = """
sky horizon landscape scenery beach shore coast sea ocean lake river forest jungle field meadow desert
mountain hill valley street road city town village park garden room kitchen studio space snow rain fog
"""
# Words that separate the words of one thing from those of another, as articles also do.
_DIVIDERS = """
and or but while whilst with full_of without then plus also next beside besides near by as for
alongside among amid close towards toward in on at over against upon onto into through from above below
under underneath beneath
inside outside which that who whose where when show shows showing shown see sees
"""
# Dividers that are visible themselves.
_RELATIONS = "above below under underneath beneath inside outside"
_ARTICLES = "a an the one another"
_FUNCTION_WORDS = """
this these those it its itself they them their he him his she her we us our i me my you your
be is are was were been being am do does did have has had will would can could
of to there all only just very whole everything everywhere around behind across together front along away
colour colours color colors coloured colored painted filled wearing wears size sized
fairly very
"""
# Words that request a display, its style or some thing, but not which. Little depends on them.
_MEDIA = "video film clip movie animation cartoon footage shot picture image scene graphic style quality"
_FRAMING = """
test simple plain flat solid uniform minimal 2d 4k 8k please make look place background backdrop surrounding
pattern patterned unpatterned patternless design covered frame cinematic hd
without_pattern untextured undecorated unadorned unmarked featureless blank non free
"""
# Words that name a thing only together with an attribute: "a red shape".
_PLACEHOLDERS = "shape piece patch object thing form figure something"
# Words that before a colour name a shade of it; hardly another colour, except for the pale ones.
_SHADES = """
bright vivid deep dark plain pure jet pitch royal neon light pale pastel baby
snow ash stone grass leaf chocolate coffee midnight fire coal canary carrot plum pumpkin mid medium concrete
wood chalk milky ink darkest
"""
_PALE = "light pale pastel baby"


@dataclass(frozen=True)
class Entry:
    """Entry of a word. Two words of equal `meaning` are synonyms within one attribute."""

    category: Category
    meaning: str | None = None


def _split(words: str) -> list[str]:
    return [word.replace("_", " ") for word in words.split()]


DIVIDERS = frozenset(_split(_DIVIDERS))
ARTICLES = frozenset(_ARTICLES.split())
MEDIA = frozenset(_MEDIA.split())
PLACEHOLDERS = frozenset(_PLACEHOLDERS.split())
FRAMING = MEDIA | PLACEHOLDERS | frozenset(_split(_FRAMING))
# Dividers that separate clauses, not the parts of one.
CONJUNCTIONS = frozenset({"and", "or", "but", "while", "whilst", "then"})
# Words that after a place in the frame request nothing else.
REGIONS = frozenset({"corner", "side", "part"})
RELATIVES = frozenset({"that", "which", "who"})
SHADES = frozenset(_SHADES.split())
PALE = frozenset(_PALE.split())
# A phrase with one of these describes the surroundings, regardless of its other words ...
BACKDROPS = frozenset({"background", "backdrop", "surrounding"})
# ... and one with or after these does so if a colour is all that it contains.
AROUND = frozenset({"around", "behind", "everything", "everywhere", "scene"})
ON = frozenset({"on", "over", "against", "upon"})
_MUTE = (DIVIDERS | ARTICLES | frozenset(_FUNCTION_WORDS.split())) - frozenset(
    f"{_RELATIONS} without".split()
)


def _inflect(word: str, category: Category) -> set[str]:
    """Returns the inflected forms of a word, and some impossible ones. Adjectives have none."""
    # "shorts" is not a form of "short".
    nouns = {word + "s", word + "es", word[:-1] + "ies"}
    if category in (Category.OTHER, Category.BACKGROUND, Category.TEXTURE):
        return nouns
    if category is not Category.MOTION:
        return set()
    stems = {word, word.removesuffix("e"), word + word[-1]}
    return nouns | {stem + ending for stem in stems for ending in ("ing", "ed")}


_PLURAL = re.compile(r".{2,}[^sui]s")

Meaning = tuple[Category, Sequence[str]]


class Lexicon:
    """The general word knowledge, extended by the synonyms of models.

    Args:
        synonyms: words of one meaning, with the attribute they describe. They take precedence over the
            general lexicon, and earlier ones over later ones.
    """

    def __init__(self, synonyms: Iterable[Meaning] = ()) -> None:
        general: list[Meaning] = [
            (category, _split(line))
            for category, lines in _MEANINGS.items()
            for line in lines.strip().split("\n")
        ]
        entries = {word: Entry(Category.BACKGROUND) for word in _SURROUNDINGS.split()}
        for category, words in (*general, *reversed([*synonyms])):
            entries |= {word: Entry(category, words[0]) for word in words}
        self._entries = entries
        self._plain = (
            {form: word for word in FRAMING for form in _inflect(word, Category.MOTION)}
            | {form: word for word, known in entries.items() for form in _inflect(word, known.category)}
            | {word: word for word in (*entries, *_MUTE, *FRAMING)}
        )
        compounds = [tuple(form.split()) for form in self._plain if " " in form]
        self._compounds: dict[str, list[tuple[str, ...]]] = {}
        for compound in sorted(compounds, key=len, reverse=True):
            self._compounds.setdefault(compound[0], []).append(compound)

    def match_compound(self, words: Sequence[str], at: int) -> int:
        """Returns the number of words of the longest compound at a position; 1 if there is none.

        Args:
            words: words in case-folded form.
        """
        return next(
            (len(c) for c in self._compounds.get(words[at], ()) if tuple(words[at : at + len(c)]) == c), 1
        )

    def to_plain(self, word: str) -> str:
        """Returns the base form of a known word; an unknown word loses a plural s.

        Args:
            word: word in case-folded form.
        """
        if word in self._plain:
            return self._plain[word]
        return word[:-1] if _PLURAL.fullmatch(word) and word[:-1] not in self._plain else word

    def look_up(self, plain_word: str) -> Entry:
        """Returns the entry of a word in its base form."""
        if plain_word.isdigit() and plain_word not in self._entries:
            return Entry(Category.NUMBER, plain_word)
        if plain_word.endswith(("n't", "n’t")):
            return self._entries["not"]
        return self._entries.get(plain_word, Entry(Category.OTHER))


def is_mute(plain_word: str) -> bool:
    """Returns whether a word without other words names nothing visible."""
    return plain_word in _MUTE


def load_lexicon(paths: Iterable[Path]) -> Lexicon:
    """Reads the lexicon files of models and returns their union with the general lexicon.

    A file holds a table `synonyms`: for each attribute, lists of words or compounds of one meaning. Raises
    ValueError that names the file and the fault.
    """
    return Lexicon(meaning for path in paths for meaning in _read_synonyms(path))


def _read_synonyms(path: Path) -> list[Meaning]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    synonyms = found.get("synonyms")
    if found.keys() != {"synonyms"} or not isinstance(synonyms, Mapping):
        raise ValueError(f"{path}: must hold one table, [synonyms]")
    categories = {category.name.lower(): category for category in Category}
    meanings: list[Meaning] = []
    for name, lists in synonyms.items():
        if name not in categories:
            raise ValueError(f"{path}: synonyms.{name}: must be one of {', '.join(categories)}")
        if not isinstance(lists, list) or not all(map(_is_word_list, lists)):
            raise ValueError(f"{path}: synonyms.{name}: must be lists of lower-case words")
        meanings += [(categories[name], words) for words in lists]
    return meanings


def _is_word_list(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(word, str) and _is_word(word) for word in value)
    )


def _is_word(text: str) -> bool:
    """Returns whether a text is a lower-case word, or several with one space between them."""
    return bool(text) and text == " ".join(text.casefold().split())
