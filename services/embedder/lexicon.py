"""What embeddings do not tell: which attribute words say the same and which do not.

Sentence encoders place words by the company they keep, and the values of one attribute keep the same company:
to MiniLM red is nearer to blue than to crimson. The words here decide colours, sizes, speeds, directions and
negation, the things a video visibly gets right or wrong; everything else is left to the embeddings.
"""

from __future__ import annotations

# One line for each meaning.
_MEANINGS = """
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
big large huge giant enormous massive
small little tiny miniature
tall high
short low
fast quick quickly rapid rapidly swift swiftly
slow slowly leisurely
left leftward leftwards westward
right rightward rightwards eastward
up upward upwards ascending rising rises
down downward downwards descending falling falls sinking sinks
clockwise
counterclockwise anticlockwise
still static motionless stationary
not no without never
day daytime daylight noon midday
night nighttime midnight
dawn sunrise daybreak
dusk sunset twilight
two pair couple
three
four
five
many several
"""

# Words that name nothing to be seen.
_FUNCTION_WORDS = """
a an the this that these those it its
is are was were be being been
and or of to which who there
"""

FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_MEANING_OF = {word: number for number, line in enumerate(_MEANINGS.split("\n")) for word in line.split()}


def meaning(word: str) -> int | None:
    """A number that two words share exactly if they say the same of one attribute; None for other words.

    Args:
        word: case-folded.
    """
    return _MEANING_OF.get(word)
