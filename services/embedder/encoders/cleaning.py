"""Normalisation of prompts as in the training of Wan's text encoder, by pure functions.

It applies the same steps in the same order: ftfy, HTML entities unescaped twice, each run of white space
replaced by one space. A change of the result needs a new version in `UMT5Encoder.procedure`, which is part of
the encoder's id.
Source: `WanPipeline` of diffusers, and Wan's own code before it.
"""

from __future__ import annotations

import html
import re

import ftfy

Range = tuple[int, int]  # characters [start, end)


def clean_prompt(prompt: str) -> str:
    """Returns the text to encode; empty if the prompt holds only white space and its escapes."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def map_to_prompt(prompt: str, cleaned: str) -> list[Range]:
    """Maps every character of `cleaned` to a range of the prompt.

    Words are paired in order. A character of a word of equal length maps to one character, one of another
    word to the whole word. Where cleaning split or joined words, all words between the unchanged ones at both
    ends map to one common range.
    """
    spans = [match.span() for match in re.finditer(r"\S+", prompt)]
    found: list[Range] = []
    words = cleaned.split()
    for word, (start, end) in zip(words, _pair_words(prompt, spans, words), strict=True):
        if found:
            before = found[-1][1]
            found.append((before, start) if before <= start else (start, end))
        if end - start == len(word):
            found += [(start + i, start + i + 1) for i in range(len(word))]
        else:
            found += [(start, end)] * len(word)
    return found


def _pair_words(prompt: str, spans: list[Range], words: list[str]) -> list[Range]:
    """Returns for every cleaned word its span in the prompt."""
    if len(spans) == len(words):
        return spans
    originals = [prompt[start:end] for start, end in spans]
    head = _count_equal(originals, words)
    tail = _count_equal(originals[head:][::-1], words[head:][::-1])
    changed = spans[head : len(spans) - tail] or [(0, 0)]
    middle = (changed[0][0], changed[-1][1])
    return spans[:head] + [middle] * (len(words) - head - tail) + spans[len(spans) - tail :]


def _count_equal(a: list[str], b: list[str]) -> int:
    """Returns the number of equal words at the start of both."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
