"""From an alignment to the kind of edit that the calibration knows."""

from __future__ import annotations

import pytest
from chorus.embedder.v1 import embedder_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.planning.edits import edit_of

CATEGORIES = embedder_pb2.TokenCategory
TOKENS = 12


def token(text: str, category: str, weight: float = 1.0, index: int = 1) -> embedder_pb2.AlignedToken:
    return embedder_pb2.AlignedToken(
        token=embedder_pb2.Token(text=text),
        weight=weight,
        index=index,
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


@pytest.mark.parametrize(
    ("found", "kind"),
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
        (alignment([BOX], [token("ball", "OTHER")]), "other"),
        (alignment([BLUE, LEFT], [RED]), "several"),
        (alignment([BLUE], [RED], reordered=True), "several"),
        (alignment([BOX, BLUE], [], things=1), "added"),
        (alignment([], [BOX, BLUE], things=-1), "removed"),
        (alignment([BOX, BLUE], [LEFT], things=1), "unrelated"),
        (alignment([BOX, BLUE], [], things=2), "unrelated"),
        (alignment([BOX] * 7, [LEFT] * 7), "unrelated"),
        (alignment([BOX, BLUE], [LEFT]), "unrelated"),
    ],
)
def test_kinds(found: embedder_pb2.Alignment, kind: str) -> None:
    assert edit_of(found, TOKENS).kind == kind


def test_an_edit_names_positions_weights_and_words() -> None:
    edit = edit_of(alignment([BLUE, token("sky", "OTHER", 0.25, 9)], [RED]), TOKENS)
    assert edit.gained == ((3, 1.0), (9, 0.25))
    assert edit.lost == ((2, 1.0),)
    assert edit.words == 'gains "blue", loses "red"'
    assert edit_of(alignment([], []), TOKENS).words == "says the same"
    assert "…" in edit_of(alignment([BLUE] * 7, []), 40).words


weighted = st.builds(
    token,
    st.sampled_from(["red", "box"]),
    st.sampled_from(["COLOUR", "OTHER", "MOTION", "BACKGROUND"]),
    st.floats(0, 1),
)


@given(st.lists(weighted, max_size=5), st.lists(weighted, max_size=5), st.integers(-3, 3), st.booleans())
def test_only_what_says_the_same_is_called_the_same(
    gained: list[embedder_pb2.AlignedToken],
    lost: list[embedder_pb2.AlignedToken],
    things: int,
    reordered: bool,
) -> None:
    kind = edit_of(alignment(gained, lost, things, reordered), TOKENS).kind
    visible = any(each.weight >= 0.5 for each in (*gained, *lost))
    assert (kind in ("same", "paraphrase", "reordered")) == (not visible)
