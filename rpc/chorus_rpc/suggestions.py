"""Suggestions for misspelt names of options, settings and fields."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Ratio from which two names count as a misspelling of each other, 0 (nothing in common) to 1 (equal).
_MIN_SIMILARITY = 0.6


def closest(name: str, known: Iterable[str]) -> str | None:
    """Returns the entry of `known` nearest to `name` in spelling, ignoring case; None if none is similar."""
    by_folded = {entry.casefold(): entry for entry in known}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=_MIN_SIMILARITY)
    return by_folded[matches[0]] if matches else None
