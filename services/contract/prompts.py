"""Rules of a prompt that the scheduler, the embedder and the denoiser must agree on."""

from __future__ import annotations

import html
import re
import unicodedata

from chorus_rpc.limits import MAX_PROMPT_BYTES

# Letters without a glyph: fillers of Hangul.
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")
# Separators, control and format characters, and marks without a letter.
_SILENT = ("Z", "Cc", "Cf", "M")
_TERMINAL_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def find_prompt_fault(prompt: str) -> str | None:
    """Describes what is wrong with a prompt; returns None for a valid one. Surrounding space is ignored."""
    size = len(prompt.strip().encode())
    if not 1 <= size <= MAX_PROMPT_BYTES:
        return f"must have 1 to {MAX_PROMPT_BYTES} bytes of UTF-8, surrounding space excluded, not {size}"
    if not has_text(prompt):
        return (
            "holds no text once HTML entities, terminal escapes and invisible characters are resolved;"
            " describe the video"
        )
    return None


def has_text(prompt: str) -> bool:
    """Returns whether a prompt holds text after the cleaning that Wan's text encoder applies."""
    # Twice, because text encoders do so: "&amp;nbsp;" is a space.
    resolved = _TERMINAL_ESCAPE.sub("", html.unescape(html.unescape(prompt)))
    return any(
        not unicodedata.category(character).startswith(_SILENT) and character not in _FILLERS
        for character in resolved
    )
