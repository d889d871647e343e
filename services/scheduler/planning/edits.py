"""What kind of edit leads from a donor's prompt to the target's. Pure: an alignment in, one word out.

The kinds are the rows of the calibration: how deep a donor may be reused depends on what changed far more
than on how similar the prompts are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from chorus.embedder.v1 import embedder_pb2

EditKind: TypeAlias = Literal[
    "same",  # nothing differs
    "paraphrase",  # other words for the same
    "colour",
    "size",
    "motion",
    "number",
    "negation",
    "background",
    "other",  # one thing is another thing, or has another shape
    "added",  # the target has a thing more
    "removed",  # the target has a thing less
    "reordered",  # the same things in another order
    "several",  # two of these
    "unrelated",  # more, or most of what is said, or a thing more or less and something else: never reused
]

# From this weight on a token makes a difference that can be seen.
_COUNTS = 0.5
# The share of the target's tokens that may differ, and of how many kinds, before the two are unrelated.
_MOST_CHANGED = 0.4
_MOST_KINDS = 2

_OF_CATEGORY: dict[embedder_pb2.TokenCategory.ValueType, EditKind] = {
    embedder_pb2.TOKEN_CATEGORY_COLOUR: "colour",
    embedder_pb2.TOKEN_CATEGORY_SIZE: "size",
    embedder_pb2.TOKEN_CATEGORY_MOTION: "motion",
    embedder_pb2.TOKEN_CATEGORY_NUMBER: "number",
    embedder_pb2.TOKEN_CATEGORY_NEGATION: "negation",
    embedder_pb2.TOKEN_CATEGORY_BACKGROUND: "background",
}


@dataclass(frozen=True)
class Edit:
    """How the target differs from a donor.

    Args:
        gained, lost: positions among the conditioning encoder's tokens of the target, and of the donor, with
            weights 0 to 1.
        words: the same for a person, for instance 'gains "blue", loses "red"'.
    """

    kind: EditKind
    gained: tuple[tuple[int, float], ...] = ()
    lost: tuple[tuple[int, float], ...] = ()
    words: str = "says the same"


def edit_of(alignment: embedder_pb2.Alignment, tokens: int) -> Edit:
    """The edit behind an alignment.

    Args:
        tokens: of the target's prompt.
    """
    gained = [each for each in alignment.gained if each.weight >= _COUNTS]
    lost = [each for each in alignment.lost if each.weight >= _COUNTS]
    return Edit(
        kind=_kind(alignment, gained, lost, tokens),
        gained=tuple((each.index, each.weight) for each in alignment.gained),
        lost=tuple((each.index, each.weight) for each in alignment.lost),
        words=_words(gained, lost),
    )


def _kind(
    alignment: embedder_pb2.Alignment,
    gained: list[embedder_pb2.AlignedToken],
    lost: list[embedder_pb2.AlignedToken],
    tokens: int,
) -> EditKind:
    if not gained and not lost:
        if alignment.reordered:
            return "reordered"
        return "paraphrase" if alignment.gained or alignment.lost else "same"
    if alignment.things_added:
        rest = lost if alignment.things_added > 0 else gained
        whole = abs(alignment.things_added) == 1 and not rest and not alignment.reordered
        if not whole:
            return "unrelated"
        return "added" if alignment.things_added > 0 else "removed"
    if max(len(gained), len(lost)) > _MOST_CHANGED * max(tokens, 1):
        return "unrelated"
    kinds = {_OF_CATEGORY.get(each.category, "other") for each in (*gained, *lost)}
    if len(kinds) > _MOST_KINDS:
        return "unrelated"
    if len(kinds) > 1 or alignment.reordered:
        return "several"
    return kinds.pop()


def _words(gained: list[embedder_pb2.AlignedToken], lost: list[embedder_pb2.AlignedToken]) -> str:
    parts = [f"{verb} {_quoted(tokens)}" for verb, tokens in (("gains", gained), ("loses", lost)) if tokens]
    return ", ".join(parts) or "says the same"


def _quoted(tokens: list[embedder_pb2.AlignedToken]) -> str:
    """The first few tokens as words."""
    texts = [each.token.text.removeprefix("##") for each in tokens]
    return '"' + " ".join(texts[:6]) + ("…" if len(texts) > 6 else "") + '"'
