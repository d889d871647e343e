"""Pairs of prompts to measure: read from a file of groups, or made from a list of prompts.

A made target differs from its donor in one thing, as when a user edits a prompt: a word is replaced by
another of its kind, or a phrase is added or left out. Which kind of edit that is, the embedder decides when
the pair is measured.
"""

from __future__ import annotations

import difflib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from chorus_rpc.errors import invalid

from evaluation.prompts import Group, PromptCase, read_groups
from services.contract.prompts import find_prompt_fault

# Words that stand for one another in any sentence, by the name of the edit.
_INTERCHANGEABLE: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "colour": (
        ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black", "gray"),
    ),
    "size": (("small", "large"), ("tiny", "huge"), ("short", "long"), ("narrow", "wide")),
    "motion": (
        ("left", "right"),
        ("up", "down"),
        ("upward", "downward"),
        ("forward", "backward"),
        ("slowly", "quickly"),
        ("slow", "fast"),
    ),
    "number": (("two", "three", "four", "five"),),
    "texture": (("striped", "checkered", "dotted", "plain"),),
    "place": (("upper left", "upper right", "lower left", "lower right"),),
    "background": (("day", "night"), ("sunrise", "sunset"), ("dawn", "dusk"), ("morning", "evening")),
}
# Phrases that may end any prompt, by the name of the edit.
_ADDITIONS: Final[dict[str, tuple[str, ...]]] = {
    "style": ("anime style", "oil painting", "pencil sketch", "claymation", "pixel art"),
    "camera": ("close-up", "wide shot", "aerial view", "low angle"),
    "mood": ("gloomy", "cheerful", "melancholic"),
}
# Words that describe a thing and stand before it.
_ADJECTIVES: Final = ("old", "young", "new", "big", "little", "bright", "dark", "wooden", "golden", "single")
_NO_THINGS: Final = "|".join(
    (*_ADJECTIVES, *(word for groups in _INTERCHANGEABLE.values() for group in groups for word in group))
)
# A thing with its article, and at most two words between them: "a red car" → car.
_THING: Final = re.compile(
    rf"\b(?:a|an|the|two|three)\s+(?:[a-z-]+\s+){{0,2}}?(?!(?:{_NO_THINGS})\b)(?P<thing>[a-z]{{3,}})(?![a-z-])"
)
_MAX_PROMPTS: Final = 100_000
_ATTEMPTS: Final = 200  # for one pair

Maker: TypeAlias = Callable[[str, Sequence[str], random.Random], str | None]


def load_pairs(path: Path, pairs: int, seed: int) -> list[Group]:
    """Returns at most `pairs` groups of one target: those of a file (.jsonl), or made from one prompt a line.

    Raises ChorusError (INVALID_FIELD) that names the invalid line, OSError when the file cannot be read.
    """
    if path.suffix == ".jsonl":
        groups = (Group(g.kind, g.donor, (target,)) for g in read_groups(path) for target in g.targets)
        return list(itertools.islice(groups, pairs))
    return make_pairs(read_prompts(path), pairs, seed)


def describe_change(group: Group) -> str:
    """Returns the words in which the first target's prompt differs from the donor's: "red -> blue"."""
    donor, target = (case.prompt.split() for case in (group.donor, group.targets[0]))
    matcher = difflib.SequenceMatcher(None, donor, target, autojunk=False)
    changes = [
        f"{' '.join(donor[a:b]) or '(none)'} -> {' '.join(target[c:d]) or '(none)'}"
        for tag, a, b, c, d in matcher.get_opcodes()
        if tag != "equal"
    ]
    return ", ".join(changes) or "the same prompt"


def read_prompts(path: Path) -> list[str]:
    """Reads one prompt a line. Raises as `load_pairs` does."""
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if prompt := line.strip():
            if (fault := find_prompt_fault(prompt)) is not None:
                raise invalid("prompts", f"{path}, line {number}: {fault}")
            prompts.append(prompt)
    prompts = list(dict.fromkeys(prompts))
    if not 2 <= len(prompts) <= _MAX_PROMPTS:
        raise invalid(
            "prompts", f"{path} must contain 2 to {_MAX_PROMPTS} different prompts, not {len(prompts)}"
        )
    return prompts


def make_pairs(prompts: Sequence[str], pairs: int, seed: int) -> list[Group]:
    """Makes different pairs, of every kind of edit in turn as far as the prompts allow it.

    The same arguments return the same pairs; fewer if the prompts allow no more.
    """
    rng = random.Random(seed)
    makers = list_makers()
    found: dict[tuple[str, str], Group] = {}
    for kind in itertools.cycle(list(makers)):
        if len(found) >= pairs or not makers:
            break
        if kind not in makers:
            continue
        pair = _draw_pair(makers[kind], prompts, rng, found)
        if pair is None:
            del makers[kind]  # the prompts allow no further one
            continue
        found[pair] = Group(kind, PromptCase(pair[0]), (PromptCase(pair[1]),))
    return list(found.values())


def _draw_pair(
    make: Maker, prompts: Sequence[str], rng: random.Random, known: dict[tuple[str, str], Group]
) -> tuple[str, str] | None:
    for _ in range(_ATTEMPTS):
        donor = rng.choice(prompts)
        target = make(donor, prompts, rng)
        if target is not None and find_prompt_fault(target) is None and (donor, target) not in known:
            return donor, target
    return None


def list_makers() -> dict[str, Maker]:
    """Returns a function for each name of an edit, from a donor's prompt to a target's, or None."""
    makers: dict[str, Maker] = {
        kind: partial(_replace_word, groups=groups) for kind, groups in _INTERCHANGEABLE.items()
    }
    makers |= {kind: partial(_add_phrase, phrases=phrases) for kind, phrases in _ADDITIONS.items()}
    return makers | {"thing": _replace_thing, "removed": _remove_phrase, "same": _repeat}


def _repeat(donor: str, prompts: Sequence[str], rng: random.Random) -> str:
    return donor


def _replace_word(
    donor: str, prompts: Sequence[str], rng: random.Random, *, groups: tuple[tuple[str, ...], ...]
) -> str | None:
    """Replaces one word by another of its group, and keeps its first letter's case."""
    places = [
        (match, word, group)
        for group in groups
        for word in group
        for match in re.finditer(rf"\b{re.escape(word)}\b", donor, re.IGNORECASE)
    ]
    if not places:
        return None
    match, word, group = rng.choice(places)
    return _put(donor, match.span(), rng.choice([other for other in group if other != word]))


def _put(prompt: str, span: tuple[int, int], text: str) -> str:
    start, end = span
    return prompt[:start] + (text.capitalize() if prompt[start].isupper() else text) + prompt[end:]


def _add_phrase(
    donor: str, prompts: Sequence[str], rng: random.Random, *, phrases: tuple[str, ...]
) -> str | None:
    free = [phrase for phrase in phrases if phrase not in donor.lower()]
    return f"{donor.rstrip(' .,')}, {rng.choice(free)}" if free else None


def _remove_phrase(donor: str, prompts: Sequence[str], rng: random.Random) -> str | None:
    """Leaves out the last phrase after a comma."""
    rest, comma, phrase = donor.rstrip(" .").rpartition(",")
    return rest.rstrip() if comma and phrase.strip() and rest.strip() else None


def _replace_thing(donor: str, prompts: Sequence[str], rng: random.Random) -> str | None:
    """Replaces a thing by one that another prompt names."""
    own = list(_find_things(donor))
    others = {match["thing"] for match in _find_things(rng.choice(prompts))} - {m["thing"] for m in own}
    if not own or not others:
        return None
    return _put(donor, rng.choice(own).span("thing"), rng.choice(sorted(others)))


def _find_things(prompt: str) -> Iterator[re.Match[str]]:
    return _THING.finditer(prompt.lower())
