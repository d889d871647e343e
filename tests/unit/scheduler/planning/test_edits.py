"""Verifies how alignments are classified into the kinds of edit of the calibration."""

from __future__ import annotations

import pytest
from chorus.embedder.v1 import embedder_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.planning.edits import classify_edit

CATEGORIES = embedder_pb2.TokenCategory
TOKENS = 12


def token(
    text: str, category: str, weight: float = 1.0, index: int = 1, unknown: bool = False
) -> embedder_pb2.AlignedToken:
    return embedder_pb2.AlignedToken(
        token=embedder_pb2.Token(text=text),
        weight=weight,
        index=index,
        unknown=unknown,
        category=CATEGORIES.Value(f"TOKEN_CATEGORY_{category}"),
    )


def alignment(
    gained: list[embedder_pb2.AlignedToken],
    lost: list[embedder_pb2.AlignedToken],
    things: int = 0,
    reordered: bool = False,
) -> embedder_pb2.Alignment:
    return embedder_pb2.Alignment(gained=gained, lost=lost, things_added=things, reordered=reordered)


BLUE, RED = token("blue", "COLOUR", index=3), token("red", "COLOUR", index=2)
LEFT, BOX = token("left", "MOTION"), token("box", "OTHER")
STRIPES, CORNER = token("striped", "TEXTURE"), token("upper left", "PLACE")
UNKNOWN = token("[UNK]", "OTHER", unknown=True)
# Words at three places of a prompt in a language that the lexicon does not know.
SPANISH = [
    token("triángulo", "OTHER", index=2),
    token("verde", "OTHER", index=4),
    token("rosa", "OTHER", index=8),
]


@pytest.mark.parametrize(
    ("aligned", "kind"),
    [
        (alignment([], []), "same"),
        (alignment([token("crimson", "COLOUR", 0.2)], [token("red", "COLOUR", 0.2)]), "paraphrase"),
        (alignment([], [], reordered=True), "reordered"),
        (alignment([BLUE], [RED]), "colour"),
        (alignment([LEFT], [token("right", "MOTION")]), "motion"),
        (alignment([token("big", "SIZE")], []), "size"),
        (alignment([token("three", "NUMBER")], [token("two", "NUMBER")]), "number"),
        (alignment([token("no", "NEGATION")], []), "negation"),
        (alignment([token("navy", "BACKGROUND")], [token("black", "BACKGROUND")]), "background"),
        (alignment([STRIPES], []), "texture"),
        (alignment([STRIPES], [token("dotted", "TEXTURE")]), "texture"),
        (alignment([], [STRIPES]), "texture_removed"),
        (alignment([CORNER], [token("center", "PLACE")]), "place"),
        (alignment([BOX], [token("ball", "OTHER")]), "other"),
        (alignment([STRIPES, BLUE], [RED]), "several_opening"),
        (alignment([LEFT], [CORNER]), "several"),
        (alignment([CORNER], [], reordered=True), "several_opening"),
        (alignment([BLUE, LEFT], [RED]), "several"),
        (alignment([BLUE], [RED], reordered=True), "several"),
        (alignment([BOX, BLUE], [], things=1), "added"),
        (alignment([], [BOX, BLUE], things=-1), "removed"),
        (alignment([BOX, BLUE], [LEFT], things=1), "unrelated"),
        (alignment([BOX, BLUE], [], things=2), "unrelated"),
        (alignment([BOX] * 7, [LEFT] * 7), "unrelated"),
        (alignment([BOX, BLUE], [LEFT]), "unrelated"),
        (alignment(SPANISH, []), "unrelated"),
        (alignment([], SPANISH), "unrelated"),
        (alignment(SPANISH[:2], SPANISH[1:]), "other"),
        (alignment([token("jo", "OTHER", index=n) for n in (3, 4, 5)], []), "other"),
        (alignment([UNKNOWN], [UNKNOWN]), "unreadable"),
        (alignment([BLUE], [UNKNOWN]), "unreadable"),
    ],
)
def test_alignments_are_classified(aligned: embedder_pb2.Alignment, kind: str) -> None:
    assert classify_edit(aligned, TOKENS).kind == kind


def test_edit_names_positions_weights_and_words() -> None:
    edit = classify_edit(alignment([BLUE, token("sky", "OTHER", 0.25, 9)], [RED]), TOKENS)
    assert edit.gained == ((3, 1.0), (9, 0.25))
    assert edit.lost == ((2, 1.0),)
    assert edit.words == 'gains "blue", loses "red"'
    assert classify_edit(alignment([], []), TOKENS).words == "does not differ"
    assert "…" in classify_edit(alignment([BLUE] * 7, []), 40).words


weighted = st.builds(
    token,
    st.sampled_from(["red", "box"]),
    st.sampled_from(["COLOUR", "OTHER", "MOTION", "BACKGROUND"]),
    st.floats(0, 1),
)


@given(st.lists(weighted, max_size=5), st.lists(weighted, max_size=5), st.integers(-3, 3), st.booleans())
def test_only_prompts_without_a_visible_difference_count_as_the_same(
    gained: list[embedder_pb2.AlignedToken],
    lost: list[embedder_pb2.AlignedToken],
    things: int,
    reordered: bool,
) -> None:
    kind = classify_edit(alignment(gained, lost, things, reordered), TOKENS).kind
    visible = any(each.weight >= 0.5 for each in (*gained, *lost))
    assert (kind in ("same", "paraphrase", "reordered")) == (not visible)
