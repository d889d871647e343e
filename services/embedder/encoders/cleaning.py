"""Prompts as Wan's text encoder was trained to read them. Pure.

The same repairs in the same order: ftfy's, HTML entities undone twice, every run of white space one space.
Source: `WanPipeline` of diffusers, and Wan's own code before it.
"""

from __future__ import annotations

import html
import re

import ftfy

Range = tuple[int, int]  # characters [start, end)


def clean(prompt: str) -> str:
    """The text to encode; empty when the prompt held nothing but white space in disguise."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def origins(prompt: str, cleaned: str) -> list[Range]:
    """For every character of `cleaned`, the range of the prompt that it came from.

    Words are paired in order. A character of a word that kept its length has its own place; one of a word
    that did not has all of the word. Where cleaning split or joined words, those between the unchanged ones
    at both ends have the range of all that stood there.
    """
    spans = [match.span() for match in re.finditer(r"\S+", prompt)]
    found: list[Range] = []
    words = cleaned.split()
    for word, (start, end) in zip(words, _paired(prompt, spans, words), strict=True):
        if found:
            before = found[-1][1]
            found.append((before, start) if before <= start else (start, end))
        if end - start == len(word):
            found += [(start + i, start + i + 1) for i in range(len(word))]
        else:
            found += [(start, end)] * len(word)
    return found


def _paired(prompt: str, spans: list[Range], words: list[str]) -> list[Range]:
    """For every cleaned word, the span it came from."""
    if len(spans) == len(words):
        return spans
    said = [prompt[start:end] for start, end in spans]
    head = _equal(said, words)
    tail = _equal(said[head:][::-1], words[head:][::-1])
    changed = spans[head : len(spans) - tail] or [(0, 0)]
    middle = (changed[0][0], changed[-1][1])
    return spans[:head] + [middle] * (len(words) - head - tail) + spans[len(spans) - tail :]


def _equal(a: list[str], b: list[str]) -> int:
    """How many words both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
