"""Words in which two prompts differ.

A plan marks the tokens of the conditioning encoder by position, and the API does not carry their text. The
words shown are therefore those of the prompts themselves.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

_PUNCTUATION = ".,;:!?\"'()[]{}“”‘’…"


@dataclass(frozen=True)
class WordDifference:
    """Words of one prompt that the other lacks, in order.

    Attributes:
        gained: words of the target's prompt that the donor's lacks.
        lost: words of the donor's prompt that the target's lacks.
    """

    gained: tuple[str, ...]
    lost: tuple[str, ...]


def compare_words(target: str, donor: str) -> WordDifference:
    """Compares two prompts word by word, ignoring case and punctuation. A word that moved is both."""
    new, old = _split(target), _split(donor)
    matcher = difflib.SequenceMatcher(
        None, [word.casefold() for word in old], [word.casefold() for word in new], autojunk=False
    )
    gained: list[str] = []
    lost: list[str] = []
    for tag, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        if tag != "equal":
            lost += old[old_start:old_end]
            gained += new[new_start:new_end]
    return WordDifference(tuple(gained), tuple(lost))


def _split(prompt: str) -> list[str]:
    words = (word.strip(_PUNCTUATION) for word in prompt.split())
    return [word for word in words if word]


def mark_words(prompt: str, other: str) -> tuple[tuple[str, bool], ...]:
    """Returns the words of a prompt, each with whether the other prompt lacks it, ignoring case and
    punctuation. A word that moved is marked.
    """
    words, others = _split(prompt), _split(other)
    matcher = difflib.SequenceMatcher(
        None, [word.casefold() for word in others], [word.casefold() for word in words], autojunk=False
    )
    marked: list[tuple[str, bool]] = []
    for tag, _, _, start, end in matcher.get_opcodes():
        marked += [(word, tag != "equal") for word in words[start:end]]
    return tuple(marked)
