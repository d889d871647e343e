"""Prompts for scenes, in many phrasings.

Training captions may leave attributes open, name things that the world does not contain, lose function words
and change punctuation, so that the model reads what it can and draws the rest at random. Sentence patterns
are held out as well as words: `unseen` phrasings use patterns that no training caption has.
"""

from __future__ import annotations

import random
import re
from typing import Final, Literal

from models.shapes.words import (
    AFTER,
    BEFORE,
    COLOURS,
    DOES,
    DOING,
    FOREIGN_ADJECTIVES,
    FOREIGN_PLACES,
    FOREIGN_THINGS,
    PATTERNS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    THINGS,
    Words,
)
from models.shapes.world import Scene, Thing

Phrasing = Literal["seen", "unseen"]

_NOISY_SHARE: Final = 0.35  # share of training captions that omit or replace words
_OMIT_SHARE: Final = 0.25  # share of the attributes that such a caption omits
_FOREIGN_SHARE: Final = 0.08  # share of the attributes that such a caption replaces
_LOST_WORD_SHARE: Final = 0.2  # share of the function words that such a caption loses
_PADDED_SHARE: Final = 0.25  # share of training captions with words that request nothing
_FUNCTION_WORDS: Final = {"a", "an", "the", "is", "of", "and", "that", "it", "with", "on", "in", "there"}

# Complete noun phrases; phrases with an omitted attribute use the first pattern only.
_NOUNS: Final = {
    "seen": ("{size} {colour} {shape}", "{size} {colour} {shape}", "{size} {colour} {shape}",
             "{colour} {shape}, {size},", "{size} {shape} in {colour}", "{colour} {size} {shape}",
             "{size}, {colour} {shape}", "{size} {shape} painted {colour}", "{shape}, {size} and {colour},",
             "{shape} that is {size} and {colour}", "{size} {shape} of {colour} colour",
             "{colour} {shape}, {size} in size,", "{size} {shape} filled with {colour}",
             "{size} {shape} which is {colour}", "{shape}, {colour}, {size},", "{size} {shape} ({colour})"),
    "unseen": ("{size} {colour} {shape}", "{size} {shape} coloured {colour}"),
}  # fmt: skip
# Order of an object {n}, what it does {d} or {v}, and its place {p}, if one is named.
_WITH_DOING: Final = ("{n} {d} {p}", "{n} {p} {d}", "{n} {p}, {d}")
_WITH_VERB: Final = ("{n} {v} {p}", "{n} {p} {v}", "{p} {n} {v}", "{p}, {n} {v}")
# {a} is "a small red circle moving left", {av} "a small red circle moves left"; {b} and {bv} the other.
# {bg} is "striped pink background", {is} "pink with stripes" or "striped pink".
_ONE: Final = {
    "seen": (
        "{a} on a {bg}", "{a} on a {bg}", "{a} on a {bg}", "on a {bg}, {av}", "{a}, {bg}",
        "{a} against a {bg}", "{bg} with {a}", "a video of {a} over a {bg}", "{av} in front of a {bg}",
        "{av}; the background is {is}", "the background is {is}; {av}", "a {bg} and {a}",
        "{a}. background: {is}", "there is {a}, and behind it a {bg}", "a {bg}, {a}",
        "show me {a} with a {bg}", "{a}; behind it there is only a {bg}", "on a {bg}: {a}", "{bg}. {av}",
        "{av} across a {bg}", "scene: {bg}, {a}", "the backdrop is {is} and {av}", "a {bg}; on it {av}",
        "make a video where {av} and the background is {is}", "{av}. the background is {is}",
        "picture {a}; the backdrop is {is}", "{av} on a {bg}", "{av}, {bg}", "{a} over a {bg}",
        "{a} upon a {bg}", "{a} and a {bg}",
    ),
    "unseen": (
        "an animation of {a}, everything behind it is {is}",
        "a clip with a {bg} showing {a}",
        "{av}, and the whole background is {is}",
        "in front of a {bg} we see {a}",
    ),
}  # fmt: skip
_TWO: Final = {
    "seen": (
        "{a} and {b} on a {bg}", "{a} and {b} on a {bg}", "{a} and {b} on a {bg}", "on a {bg}, {av} and {bv}",
        "{a}, {b}, {bg}", "{a} next to {b} against a {bg}", "{bg} with {a} and {b}",
        "a video of {a} and {b} over a {bg}", "{av} while {bv}; the background is {is}",
        "the background is {is}; {av} and {bv}", "a {bg} and {a} and {b}", "{a}; {b}. background: {is}",
        "there is {a} and there is {b}, and behind them a {bg}", "a {bg}, {a}, {b}",
        "show me {a} and {b} with a {bg}", "{a}, then {b}; behind them there is only a {bg}",
        "on a {bg}: {a} and {b}", "{bg}. {av}. {bv}", "{av} and {bv} across a {bg}",
        "{a} together with {b}, {bg}", "scene: {bg}, {a}, {b}", "the backdrop is {is}, {av} and {bv}",
        "a {bg}; on it {av} while {bv}", "make a video where {av}, {bv} and the background is {is}",
        "{av} and {bv}. the background is {is}", "picture {a} with {b}; the backdrop is {is}",
        "{av} and {bv} on a {bg}", "{a} with {b} over a {bg}",
    ),
    "unseen": (
        "an animation of {a} alongside {b}, everything behind them is {is}",
        "a clip with a {bg} showing {a} and {b}",
        "{av}, {bv}, and the whole background is {is}",
        "in front of a {bg} we see {a} and also {b}",
    ),
}  # fmt: skip
_BACKGROUNDS: Final = ("background", "background", "background", "backdrop", "ground", "wall")
_ARTICLES: Final = ("a ", "a ", "a ", "the ", "one ", "")


class _Writer:
    """Draws the words of one caption."""

    def __init__(self, rng: random.Random, phrasing: Phrasing, unseen_words: bool, noisy: bool) -> None:
        self.rng, self.phrasing, self.unseen_words, self.noisy = rng, phrasing, unseen_words, noisy

    def word(self, words: Words) -> str:
        return self.rng.choice(words.unseen if self.unseen_words else words.seen)

    def attribute(self, words: Words, foreign: tuple[str, ...] = ()) -> str:
        """Returns a word for an attribute. In a noisy caption it may be missing ("") or a foreign one."""
        if self.noisy and self.rng.random() < _OMIT_SHARE:
            return ""
        if self.noisy and foreign and self.rng.random() < _FOREIGN_SHARE:
            return self.rng.choice(foreign)
        return self.word(words)

    def noun(self, thing: Thing) -> str:
        size = self.attribute(SIZES[thing.size], FOREIGN_ADJECTIVES)
        colour = self.attribute(COLOURS[thing.colour], FOREIGN_ADJECTIVES)
        shape = self.attribute(SHAPES[thing.shape], FOREIGN_THINGS)
        patterns = _NOUNS[self.phrasing] if size and colour and shape else _NOUNS[self.phrasing][:1]
        text = self.rng.choice(patterns).format(
            size=size, colour=colour, shape=shape or self.rng.choice(THINGS)
        )
        return self.rng.choice(_ARTICLES) + text

    def phrases(self, thing: Thing) -> tuple[str, str]:
        """Returns an object with what it does as a participle, and as a finite verb."""
        noun = self.noun(thing)
        place = "" if thing.place is None else self.attribute(PLACES[thing.place])
        moving = self.attribute(DOING[thing.motion])
        verb = self.word(DOES[thing.motion]) if moving else "is there"
        with_doing, with_verb = (_WITH_DOING, _WITH_VERB) if place else (_WITH_DOING[:1], _WITH_VERB[:1])
        return (
            self.rng.choice(with_doing).format(n=noun, d=moving, p=place),
            self.rng.choice(with_verb).format(n=noun, v=verb, p=place),
        )

    def background(self, scene: Scene) -> tuple[str, str]:
        """Returns the background as a noun phrase, and as a predicate."""
        colour = self.attribute(COLOURS[scene.background])
        noun = self.rng.choice(_BACKGROUNDS) if self.phrasing == "seen" else "background"
        if scene.texture != "plain" and self.rng.random() < 0.4:
            pattern = self.word(PATTERNS[scene.texture])
            return f"{colour} {noun} {pattern}", f"{colour} {pattern}"
        texture = self.word(TEXTURES[scene.texture])
        if self.rng.random() < 0.25 and self.phrasing == "seen":
            texture, colour = colour, texture
        predicate = f"{texture} {colour}".strip() or "there"
        return f"{texture} {colour} {noun}", predicate


def caption(
    scene: Scene,
    rng: random.Random,
    phrasing: Phrasing = "seen",
    unseen_words: bool = False,
    noise: float = 0.0,
) -> str:
    """Draws one phrasing of a scene. A plain background may go unmentioned: only its colour is named.

    Args:
        scene: Scene to describe.
        rng: Random generator.
        phrasing: `seen` for patterns that training uses, `unseen` for held-out patterns.
        unseen_words: True to name every attribute by a held-out word.
        noise: Share of captions that omit attributes, name foreign things and lose function words.
    """
    noisy = rng.random() < noise
    writer = _Writer(rng, phrasing, unseen_words, noisy)
    background, predicate = writer.background(scene)
    parts = {"bg": background, "is": predicate}
    for name, thing in zip("ab", scene.things, strict=False):
        parts[name], parts[name + "v"] = writer.phrases(thing)
    text = rng.choice((_ONE if len(scene.things) == 1 else _TWO)[phrasing]).format(**parts)
    if noisy:
        words = text.split(" ")
        text = " ".join(w for w in words if w not in _FUNCTION_WORDS or rng.random() > _LOST_WORD_SHARE)
        if rng.random() < 0.15:
            text = f"{text} {rng.choice(FOREIGN_PLACES)}"
        if rng.random() < 0.3:
            text = re.sub(r"[,;.:!]", lambda m: rng.choice(("", m[0], ",")), text)
    return _tidy(text)


def training_caption(scene: Scene, rng: random.Random) -> str:
    """Draws a caption for training: some are noisy, and some have words that request nothing."""
    text = caption(scene, rng, noise=_NOISY_SHARE)
    if rng.random() < _PADDED_SHARE:
        text = rng.choice((rng.choice(BEFORE) + text, text + rng.choice(AFTER)))
    return text


def plain_caption(scene: Scene) -> str:
    """Returns the plainest phrasing of a scene."""
    named = []
    for t in scene.things:
        place = f" {PLACES[t.place].seen[0]}" if t.place else ""
        named.append(f"a {t.size} {t.colour} {t.shape} {DOING[t.motion].seen[0]}{place}")
    texture = "" if scene.texture == "plain" else f"{scene.texture} "
    return _tidy(f"{' and '.join(named)} on a {texture}{scene.background} background")


def _tidy(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([,;.])", r"\1", text)
    text = re.sub(r",+([,;.]|$)", r"\1", text)
    return re.sub(r"\ba (?=[aeio])", "an ", text)
