"""Prompts for scenes, in many phrasings: synonyms, noun phrases and sentence patterns.

Some patterns and words are held out of training: `unseen` phrasings use patterns that no training caption
has, and with `unseen_words` every attribute is named by a word that no training caption has.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Final, Literal

from models.movingshapes.world import Scene, Thing

Phrasing = Literal["seen", "unseen"]
PADDED_SHARE: Final = 0.25  # share of training captions with additional words that request nothing


@dataclass(frozen=True)
class Words:
    """Names of an attribute value. Training draws from `seen`, whose first entry is the plainest name."""

    seen: tuple[str, ...]
    unseen: tuple[str, ...]


SHAPES: Final = {
    "circle": Words(
        ("circle", "disc", "ball", "dot", "round shape", "circular shape", "orb"), ("sphere", "disk")
    ),
    "square": Words(
        ("square", "box", "block", "square shape", "square piece", "square patch"), ("cube", "square tile")
    ),
    "triangle": Words(
        ("triangle", "triangular shape", "pyramid", "wedge", "triangular piece"), ("triangular block",)
    ),
}
COLOURS: Final = {
    "red": Words(("red", "crimson", "scarlet", "bright red"), ("ruby red", "vivid red")),
    "green": Words(("green", "emerald", "bright green", "grass green"), ("vivid green", "leaf green")),
    "blue": Words(("blue", "bright blue", "royal blue", "cobalt"), ("vivid blue", "sapphire blue")),
    "yellow": Words(("yellow", "bright yellow", "lemon yellow"), ("vivid yellow", "golden yellow")),
    "orange": Words(("orange", "bright orange", "tangerine"), ("vivid orange",)),
    "purple": Words(("purple", "violet", "bright purple"), ("vivid purple", "deep violet")),
    "cyan": Words(("cyan", "turquoise", "bright cyan", "aqua"), ("vivid cyan",)),
}
BACKGROUNDS: Final = {
    "black": Words(("black", "pitch black", "plain black"), ("jet black",)),
    "white": Words(("white", "plain white", "snow white"), ("pure white",)),
    "gray": Words(("gray", "grey", "plain gray", "ash gray"), ("stone gray",)),
    "navy": Words(("navy", "navy blue", "dark blue"), ("midnight blue",)),
    "brown": Words(("brown", "dark brown", "chocolate brown"), ("coffee brown",)),
}
SIZES: Final = {
    "small": Words(("small", "tiny", "little", "mini"), ("petite",)),
    "large": Words(("large", "big", "huge", "giant"), ("enormous",)),
}
DOING: Final = {  # after "a circle ..."
    "left": Words(
        ("moving left", "moving to the left", "sliding left", "drifting to the left", "going left"),
        ("gliding leftwards", "travelling to the left"),
    ),
    "right": Words(
        ("moving right", "moving to the right", "sliding right", "drifting to the right", "going right"),
        ("gliding rightwards", "travelling to the right"),
    ),
    "up": Words(("moving up", "moving upwards", "rising", "floating up", "going up"), ("climbing upwards",)),
    "down": Words(
        ("moving down", "moving downwards", "falling", "sinking down", "going down"), ("dropping downwards",)
    ),
    "still": Words(
        ("standing still", "staying still", "not moving", "resting", "staying in place"), ("motionless",)
    ),
}
DOES: Final = {  # the same as finite verbs
    "left": Words(
        ("moves left", "moves to the left", "slides left", "drifts to the left", "goes left"),
        ("glides leftwards", "travels to the left"),
    ),
    "right": Words(
        ("moves right", "moves to the right", "slides right", "drifts to the right", "goes right"),
        ("glides rightwards", "travels to the right"),
    ),
    "up": Words(("moves up", "moves upwards", "rises", "floats up", "goes up"), ("climbs upwards",)),
    "down": Words(("moves down", "moves downwards", "falls", "sinks down", "goes down"),
                  ("drops downwards",)),
    "still": Words(("stands still", "stays still", "does not move", "rests", "stays in place"),
                   ("remains motionless",)),
}  # fmt: skip

# {d} is "moving left", {v} is "moves left".
_NOUNS: Final = {
    "seen": ("{size} {colour} {shape}", "{size} {colour} {shape}", "{colour} {shape}, {size},",
             "{size} {shape} in {colour}", "{colour} {size} {shape}", "{size}, {colour} {shape}",
             "{size} {shape} painted {colour}", "{shape}, {size} and {colour},",
             "{shape} that is {size} and {colour}", "{size} {shape} of {colour} colour",
             "{colour} {shape}, {size} in size,", "{size} {shape} filled with {colour}",
             "{size} {shape} which is {colour}", "{size} flat {colour} {shape}",
             "{shape}, {colour}, {size},", "{size} {shape} ({colour})"),
    "unseen": ("{size} {colour} {shape}", "{size} {shape} coloured {colour}"),
}  # fmt: skip
# {a} is "a small red circle moving left", {av} "a small red circle moves left"; {b} and {bv} the second.
_ONE: Final = {
    "seen": (
        "{a} on a {bg} background",
        "{a} on a {bg} background",
        "on a {bg} background, {av}",
        "{a}, {bg} background",
        "{a} against a {bg} background",
        "{bg} background with {a}",
        "a video of {a} over a {bg} background",
        "{av} in front of a {bg} background",
        "{av}; the background is {bg}",
        "the background is {bg}; {av}",
        "a {bg} scene in which {av}",
        "{a}. background: {bg}",
        "there is {a}, and behind it a {bg} background",
        "{bg} backdrop, {a}",
        "everything is {bg} but for {a}",
        "short film: {av}, all on {bg}",
        "show me {a} with a {bg} background",
        "{a}; there is only {bg} around it",
        "{a} on {bg}",
        "on {bg}: {a}",
        "{bg} background. {av}",
        "{av} across a {bg} background",
        "{a}, with {bg} all around",
        "scene: {bg} background, {a}",
        "the backdrop is {bg} and {av}",
        "a {bg} backdrop; on it {av}",
        "make a video where {av} and the background is {bg}",
        "{av}. the background colour is {bg}",
        "picture {a}; the backdrop is {bg}",
        "look, {av} on {bg}",
    ),
    "unseen": (
        "an animation of {a}, everything behind it is {bg}",
        "a clip with a {bg} background showing {a}",
        "{av}, and the whole background is {bg}",
        "in front of a {bg} background we see {a}",
    ),
}
_TWO: Final = {
    "seen": (
        "{a} and {b} on a {bg} background",
        "{a} and {b} on a {bg} background",
        "on a {bg} background, {av} and {bv}",
        "{a}, {b}, {bg} background",
        "{a} next to {b} against a {bg} background",
        "{bg} background with {a} and {b}",
        "a video of {a} and {b} over a {bg} background",
        "{av} while {bv}; the background is {bg}",
        "the background is {bg}; {av} and {bv}",
        "a {bg} scene in which {av} and {bv}",
        "{a}; {b}. background: {bg}",
        "there is {a} and there is {b}, and behind them a {bg} background",
        "{bg} backdrop, {a}, {b}",
        "everything is {bg} but for {a} and {b}",
        "short film: {av} and {bv}, all on {bg}",
        "show me {a} and {b} with a {bg} background",
        "{a}, then {b}; there is only {bg} around them",
        "{a} and {b} on {bg}",
        "on {bg}: {a} and {b}",
        "{bg} background. {av}. {bv}",
        "{av} and {bv} across a {bg} background",
        "{a} together with {b}, with {bg} all around",
        "scene: {bg} background, {a}, {b}",
        "the backdrop is {bg}, {av} and {bv}",
        "a {bg} backdrop; on it {av} while {bv}",
        "make a video where {av}, {bv} and the background is {bg}",
        "{av} and {bv}. the background colour is {bg}",
        "picture {a} with {b}; the backdrop is {bg}",
        "look, {av} and {bv} on {bg}",
    ),
    "unseen": (
        "an animation of {a} beside {b}, everything behind them is {bg}",
        "a clip with a {bg} background showing {a} and {b}",
        "{av}, {bv}, and the whole background is {bg}",
        "in front of a {bg} background we see {a} and also {b}",
    ),
}
# Additional words that request nothing; most captions have none.
_BEFORE: Final = ("simple graphics: ", "2d video, ", "cartoon: ", "please, ", "high quality, ", "test: ")
_AFTER: Final = (", simple shapes", ", flat colours", ", 2d", ", high quality", ", minimal style", ".", "!")
_ARTICLES: Final = ("a ", "a ", "a ", "the ", "")


def caption(scene: Scene, rng: random.Random, phrasing: Phrasing = "seen", unseen_words: bool = False) -> str:
    """Draws one phrasing of a scene.

    Args:
        scene: Scene to describe.
        rng: Random generator.
        phrasing: `seen` for patterns that training uses, `unseen` for held-out patterns.
        unseen_words: True to name every attribute by a held-out word.
    """

    def word(words: Words) -> str:
        return rng.choice(words.unseen if unseen_words else words.seen)

    def noun(thing: Thing) -> str:
        return rng.choice(_ARTICLES) + rng.choice(_NOUNS[phrasing]).format(
            size=word(SIZES[thing.size]), colour=word(COLOURS[thing.colour]), shape=word(SHAPES[thing.shape])
        )

    parts = {"bg": word(BACKGROUNDS[scene.background])}
    for name, thing in zip("ab", scene.things, strict=False):
        parts[name] = f"{noun(thing)} {word(DOING[thing.motion])}"
        parts[name + "v"] = f"{noun(thing)} {word(DOES[thing.motion])}"
    text = rng.choice((_ONE if len(scene.things) == 1 else _TWO)[phrasing]).format(**parts)
    if phrasing == "seen" and rng.random() < PADDED_SHARE:
        text = rng.choice((rng.choice(_BEFORE) + text, text + rng.choice(_AFTER)))
    return _with_articles(text)


def plain_caption(scene: Scene) -> str:
    """Returns the plainest phrasing of a scene."""
    named = [
        f"a {t.size} {t.colour} {t.shape} {DOING[t.motion].seen[0]}" for t in scene.things
    ]  # fmt: skip
    return _with_articles(f"{' and '.join(named)} on a {scene.background} background")


def _with_articles(text: str) -> str:
    return re.sub(r"\ba (?=[aeio])", "an ", text)
