"""Classifies the edit that leads from a donor's prompt to the target's. It is a pure function.

The kinds are the rows of the calibration: the permissible depth of reuse depends far more on what changed
than on how similar the prompts are.
"""

from __future__ import annotations

from dataclasses import dataclass

from chorus.embedder.v1 import embedder_pb2

from services.contract.edits import EditKind

# Weight from which on a token makes a visible difference.
_MIN_WEIGHT = 0.5
# Upper bounds on the share of the target's tokens that differ, and on the number of kinds of edit; beyond
# them the two prompts are unrelated.
_MAX_CHANGED = 0.4
_MAX_KINDS = 2
# Upper bound on the places at which words of no known kind differ. In a language that the lexicon does not
# know, words of every kind are among them.
_MAX_PLACES = 2

_KINDS: dict[embedder_pb2.TokenCategory.ValueType, EditKind] = {
    embedder_pb2.TOKEN_CATEGORY_COLOUR: "colour",
    embedder_pb2.TOKEN_CATEGORY_SIZE: "size",
    embedder_pb2.TOKEN_CATEGORY_MOTION: "motion",
    embedder_pb2.TOKEN_CATEGORY_NUMBER: "number",
    embedder_pb2.TOKEN_CATEGORY_NEGATION: "negation",
    embedder_pb2.TOKEN_CATEGORY_BACKGROUND: "background",
    embedder_pb2.TOKEN_CATEGORY_TEXTURE: "texture",
    embedder_pb2.TOKEN_CATEGORY_PLACE: "place",
    embedder_pb2.TOKEN_CATEGORY_STYLE: "style",
    embedder_pb2.TOKEN_CATEGORY_CAMERA: "camera",
    embedder_pb2.TOKEN_CATEGORY_MOOD: "mood",
}
# Kinds of edit that open something: the target names what the donor's layout does not show, such as where the
# new stripes are, or what else a wider shot contains. They are separate kinds because they allow less reuse
# than other edits.
OPENING: frozenset[EditKind] = frozenset({"texture", "place", "camera", "added", "several_opening"})
# Kinds of edit after which little of the donor can be of use.
NEVER_REUSED: frozenset[EditKind] = frozenset({"unreadable", "unrelated"})


@dataclass(frozen=True)
class Edit:
    """Difference between the target's prompt and a donor's.

    Attributes:
        gained: positions among the conditioning encoder's tokens of the target, with weights 0 to 1.
        lost: positions among the same encoder's tokens of the donor, with weights 0 to 1.
        words: the difference in words, such as 'gains "blue", loses "red"'.
    """

    kind: EditKind
    gained: tuple[tuple[int, float], ...] = ()
    lost: tuple[tuple[int, float], ...] = ()
    words: str = "does not differ"


def classify_edit(alignment: embedder_pb2.Alignment, tokens: int) -> Edit:
    """Returns the edit that an alignment shows.

    Args:
        tokens: number of tokens of the target's prompt.
    """
    gained = [each for each in alignment.gained if each.weight >= _MIN_WEIGHT]
    lost = [each for each in alignment.lost if each.weight >= _MIN_WEIGHT]
    return Edit(
        kind=_classify(alignment, gained, lost, tokens),
        gained=tuple((each.index, each.weight) for each in alignment.gained),
        lost=tuple((each.index, each.weight) for each in alignment.lost),
        words=_describe(gained, lost),
    )


def _classify(
    alignment: embedder_pb2.Alignment,
    gained: list[embedder_pb2.AlignedToken],
    lost: list[embedder_pb2.AlignedToken],
    tokens: int,
) -> EditKind:
    if not gained and not lost:
        if alignment.reordered:
            return "reordered"
        return "paraphrase" if alignment.gained or alignment.lost else "same"
    if any(each.unknown for each in (*gained, *lost)):
        return "unreadable"
    if alignment.things_added:
        rest = lost if alignment.things_added > 0 else gained
        only_change = abs(alignment.things_added) == 1 and not rest and not alignment.reordered
        if not only_change:
            return "unrelated"
        return "added" if alignment.things_added > 0 else "removed"
    if max(len(gained), len(lost)) > _MAX_CHANGED * max(tokens, 1):
        return "unrelated"
    kinds = _name_kinds(gained) | _name_kinds(lost)
    if len(kinds) > _MAX_KINDS or max(_count_places(gained), _count_places(lost)) > _MAX_PLACES:
        return "unrelated"
    opens = not OPENING.isdisjoint(_name_kinds(gained))
    if len(kinds) > 1 or alignment.reordered:
        return "several_opening" if opens else "several"
    kind = kinds.pop()
    return "texture_removed" if kind == "texture" and not opens else kind


def _name_kinds(tokens: list[embedder_pb2.AlignedToken]) -> set[EditKind]:
    return {_KINDS.get(each.category, "other") for each in tokens}


def _count_places(tokens: list[embedder_pb2.AlignedToken]) -> int:
    """Returns the number of runs of adjacent tokens of the category OTHER."""
    places = [each.index for each in tokens if each.category == embedder_pb2.TOKEN_CATEGORY_OTHER]
    return sum(index - 1 not in places for index in places)


def _describe(gained: list[embedder_pb2.AlignedToken], lost: list[embedder_pb2.AlignedToken]) -> str:
    parts = [f"{verb} {_quote(tokens)}" for verb, tokens in (("gains", gained), ("loses", lost)) if tokens]
    return ", ".join(parts) or "does not differ"


def _quote(tokens: list[embedder_pb2.AlignedToken]) -> str:
    """Returns the first few tokens as words."""
    texts = [each.token.text.removeprefix("##") for each in tokens]
    return '"' + " ".join(texts[:6]) + ("…" if len(texts) > 6 else "") + '"'
