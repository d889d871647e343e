"""Words and phrases that name the world's attributes.

Training draws from `seen`, whose first entry is the plainest name; no training caption has a word of
`unseen`, which tests how well unknown words are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Words:
    """Names of an attribute value."""

    seen: tuple[str, ...]
    unseen: tuple[str, ...]


SHAPES: Final = {
    "circle": Words(
        ("circle", "circle", "disc", "ball", "round shape", "circular shape", "orb", "sphere", "round object",
         "round disc", "round thing", "globe", "circular figure", "round tile", "circular block",
         "round patch", "circular piece", "balloon", "marble", "pearl", "bead", "round drop",
         "coin", "button", "moon", "berry", "pebble", "plate", "wheel"),
        ("disk", "bubble"),
    ),
    "square": Words(
        ("square", "square", "box", "block", "cube", "square shape", "square piece", "square block", "tile",
         "square object", "four-sided shape", "square patch", "square figure", "box-like thing", "crate",
         "square panel", "square card", "brick", "dice"),
        ("square tile", "boxy shape"),
    ),
    "triangle": Words(
        ("triangle", "triangle", "triangular shape", "pyramid", "wedge", "triangular piece", "triangle shape",
         "three-sided shape", "triangular object", "triangular figure", "cone", "triangular patch",
         "triangular thing", "triangle piece", "triangular panel", "triangular card", "triangular brick",
         "triangular box", "arrowhead"),
        ("triangular block", "triangular tile"),
    ),
}  # fmt: skip
COLOURS: Final = {
    "red": Words(("red", "red", "crimson", "scarlet", "bright red", "cherry red", "fire red"),
                 ("ruby red", "vivid red")),
    "orange": Words(("orange", "orange", "bright orange", "tangerine", "pumpkin orange", "orange coloured"),
                    ("vivid orange", "carrot orange")),
    "yellow": Words(("yellow", "yellow", "bright yellow", "lemon yellow", "lemon", "canary yellow"),
                    ("vivid yellow", "golden yellow")),
    "green": Words(("green", "green", "emerald", "bright green", "grass green", "emerald green"),
                   ("vivid green", "leaf green")),
    "cyan": Words(("cyan", "cyan", "turquoise", "bright cyan", "aqua", "teal", "aquamarine"),
                  ("vivid cyan", "light turquoise")),
    "blue": Words(("blue", "blue", "bright blue", "royal blue", "cobalt", "cobalt blue", "azure"),
                  ("vivid blue", "sapphire blue")),
    "navy": Words(("navy", "navy blue", "dark blue", "deep blue", "navy blue", "very dark blue"),
                  ("midnight blue", "darkest blue")),
    "purple": Words(("purple", "purple", "violet", "bright purple", "deep purple", "plum purple"),
                    ("vivid purple", "deep violet")),
    "pink": Words(("pink", "pink", "light pink", "rose", "bright pink", "pastel pink", "rosy"),
                  ("rose pink", "baby pink")),
    "brown": Words(("brown", "brown", "dark brown", "chocolate brown", "chocolate", "chestnut brown"),
                   ("coffee brown", "wood brown")),
    "white": Words(("white", "white", "snow white", "pure white", "bright white", "ivory white"),
                   ("chalk white", "milky white")),
    "gray": Words(("gray", "grey", "ash gray", "mid gray", "silver grey", "medium grey"),
                  ("stone gray", "concrete grey")),
    "black": Words(("black", "black", "pitch black", "pure black", "coal black", "ebony black"),
                   ("jet black", "ink black")),
}  # fmt: skip
SIZES: Final = {
    "small": Words(("small", "small", "tiny", "little", "mini", "miniature", "very small", "small-sized"),
                   ("petite", "fairly small")),
    "large": Words(("large", "large", "big", "huge", "giant", "massive", "very large", "large-sized"),
                   ("enormous", "fairly big")),
}  # fmt: skip
PLACES: Final = {
    "upper left": Words(
        ("in the upper left", "at the top left", "in the top left corner", "in the upper left corner",
         "on the upper left", "in the upper left part",
         "close to the top left corner", "towards the upper left"),
        ("near the top left corner", "at the upper left side"),
    ),
    "upper right": Words(
        ("in the upper right", "at the top right", "in the top right corner", "in the upper right corner",
         "on the upper right", "in the upper right part",
         "close to the top right corner", "towards the upper right"),
        ("near the top right corner", "at the upper right side"),
    ),
    "lower left": Words(
        ("in the lower left", "at the bottom left", "in the bottom left corner", "in the lower left corner",
         "on the lower left", "in the lower left part",
         "close to the bottom left corner", "towards the lower left"),
        ("near the bottom left corner", "at the lower left side"),
    ),
    "lower right": Words(
        ("in the lower right", "at the bottom right", "in the bottom right corner",
         "in the lower right corner", "on the lower right", "in the lower right part",
         "close to the bottom right corner", "towards the lower right"),
        ("near the bottom right corner", "at the lower right side"),
    ),
}  # fmt: skip
TEXTURES: Final = {  # before the noun
    "plain": Words(("", "", "", "plain", "plain", "solid", "uniform", "flat", "patternless", "pattern-free",
                    "untextured", "undecorated", "unadorned", "blank", "without pattern", "non-patterned",
                    "featureless", "unmarked"),
                   ("", "unpatterned")),
    "striped": Words(("striped", "striped", "stripy", "banded", "lined", "streaked", "pinstriped",
                      "line-patterned", "ribbed", "stripe-covered", "lined with stripes"),
                     ("streaky", "stripe-patterned")),
    "checkered": Words(("checkered", "checkered", "chequered", "checked", "checkerboard", "chess-style",
                        "gingham", "check-covered", "chequerboard", "chess-patterned"),
                       ("chessboard", "check-patterned")),
    "dotted": Words(("dotted", "dotted", "spotted", "polka dot", "dappled", "flecked", "stippled", "spotty",
                     "freckled", "mottled", "dotty", "sprinkled", "dot-covered", "peppered"),
                    ("speckled", "dot-patterned")),
}  # fmt: skip
PATTERNS: Final = {  # after the noun
    "striped": Words(("with stripes", "with bands", "covered in stripes", "full of stripes",
                      "with a striped pattern", "with a striped look", "striped all across"),
                     ("with stripes all over", "with a banded design")),
    "checkered": Words(("with checks", "with a checkerboard pattern", "covered in checks",
                        "with a checkered pattern", "with a chequered look", "checked all across"),
                       ("with checks all over", "with a chequered design")),
    "dotted": Words(("with dots", "with polka dots", "covered in dots", "full of spots",
                     "with a dotted pattern", "with a spotted look", "dotted all across"),
                    ("with dots all over", "with a spotted design")),
}  # fmt: skip
DOING: Final = {  # after "a circle ..."
    "left": Words(
        ("moving left", "moving left", "moving to the left", "sliding left", "drifting to the left",
         "going left",
         "travelling left", "heading left", "flying to the left", "that moves left"),
        ("gliding leftwards", "rolling to the left"),
    ),
    "right": Words(
        ("moving right", "moving right", "moving to the right", "sliding right", "drifting to the right",
         "going right", "travelling right", "heading right", "flying to the right", "that moves right"),
        ("gliding rightwards", "rolling to the right"),
    ),
    "up": Words(
        ("moving up", "moving up", "moving upwards", "rising", "floating up", "going up", "travelling up",
         "heading up", "flying upwards", "that moves up", "climbing", "soaring", "lifting off",
         "going higher"),
        ("climbing upwards", "ascending"),
    ),
    "down": Words(
        ("moving down", "moving down", "moving downwards", "falling", "sinking down", "going down",
         "travelling down", "heading down", "dropping", "that moves down", "plunging",
         "going lower", "coming down"),
        ("descending", "falling downwards"),
    ),
    "still": Words(
        ("standing still", "standing still", "staying still", "not moving", "resting", "staying in place",
         "at rest", "fixed in place", "without motion", "that does not move", "unmoving", "frozen",
         "immobile"),
        ("motionless", "stationary"),
    ),
}  # fmt: skip
DOES: Final = {  # the same as finite verbs
    "left": Words(
        ("moves left", "moves left", "moves to the left", "slides left", "drifts to the left",
         "goes left",
         "travels left", "heads left", "flies to the left"),
        ("glides leftwards", "rolls to the left"),
    ),
    "right": Words(
        ("moves right", "moves right", "moves to the right", "slides right", "drifts to the right",
         "goes right",
         "travels right", "heads right", "flies to the right"),
        ("glides rightwards", "rolls to the right"),
    ),
    "up": Words(
        ("moves up", "moves up", "moves upwards", "rises", "floats up", "goes up", "travels up", "heads up",
         "flies upwards", "climbs", "soars", "lifts off", "goes higher"),
        ("climbs upwards", "ascends"),
    ),
    "down": Words(
        ("moves down", "moves down", "moves downwards", "falls", "sinks down", "goes down", "travels down",
         "heads down", "drops", "plunges", "goes lower", "comes down"),
        ("descends", "falls downwards"),
    ),
    "still": Words(
        ("stands still", "stands still", "stays still", "does not move", "rests", "stays in place",
         "is at rest", "remains in place", "is immobile", "stays put"),
        ("remains motionless", "is stationary"),
    ),
}  # fmt: skip
THINGS: Final = ("object", "shape", "thing", "figure", "something")  # instead of a shape that is left open
# Words for what the world does not contain; the attribute that they replace is open.
FOREIGN_THINGS: Final = (
    "dragon", "car", "cat", "dog", "tree", "house", "robot", "flower", "heart", "star", "boat", "apple",
    "bird",
    "horse", "plane", "cup", "chair", "fish", "person", "mountain", "bottle", "guitar", "elephant", "train",
)  # fmt: skip
FOREIGN_ADJECTIVES: Final = (
    "wooden", "shiny", "metallic", "fluffy", "transparent", "old", "beautiful", "glowing", "soft", "angry",
    "golden", "fast", "ancient", "smooth", "plastic", "cute", "glass",
)  # fmt: skip
FOREIGN_PLACES: Final = (
    "on a beach", "in the forest", "at night", "in space", "in a city street", "under water", "in a kitchen",
    "in the rain", "at sunset", "on a table", "in a field", "on the moon",
)  # fmt: skip
BEFORE: Final = (
    "simple graphics: ", "2d video, ", "cartoon: ", "please, ", "high quality, ", "test: ", "a video of ",
    "an animation: ", "generate ", "show ", "I want ", "16 frames of ", "render: ",
)  # fmt: skip
AFTER: Final = (
    ", simple shapes", ", flat colours", ", 2d", ", high quality", ", minimal style", ".", "!", ", 4k",
    ", cinematic", " in slow motion", ", smooth animation", ", no text", " please", ", vector art",
)  # fmt: skip
