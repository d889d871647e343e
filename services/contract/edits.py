"""Kinds of edit that lead from a donor's prompt to the target's, as plans name them."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

EditKind: TypeAlias = Literal[
    "same",  # nothing differs
    "paraphrase",  # same meaning in other words
    "colour",
    "size",
    "motion",
    "number",
    "negation",
    "background",
    "texture",  # the target names a pattern that the donor lacks
    "texture_removed",
    "place",  # a thing is elsewhere in the frame
    "style",  # the whole picture looks different
    "camera",  # another view, or another movement of the camera
    "mood",
    "other",  # one thing was replaced by another, or has another shape
    "added",  # the target has one more thing
    "removed",  # the target has one thing less
    "reordered",  # the same things in another order
    "several",  # two of these kinds
    "several_opening",  # two of these kinds, at least one of which opens something
    "unreadable",  # the encoder's vocabulary lacks a word that changed, so that it is not known how much did
    "unrelated",  # more than two, or most of the prompt, or a thing added or removed along with another edit
]

EDIT_KINDS: Final[tuple[str, ...]] = get_args(EditKind)
