"""Verifies the words that `chorus explain` shows as gained and lost, short ids, and text cut to a width."""

from __future__ import annotations

import pytest
from chorus_cli.identifiers import SHORT, shorten
from chorus_cli.output import one_line
from chorus_client.words import compare_words
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("target", "donor", "gained", "lost"),
    [
        ("a blue circle", "a red circle", "blue", "red"),
        ("A red circle.", "a Red, circle", "", ""),
        ("a red circle and a square", "a red circle", "and a square", ""),
        ("a circle", "a large red circle", "", "large red"),
        ("square left of circle", "circle left of square", "square circle", "circle square"),
        ("a red circle", "", "a red circle", ""),
    ],
)
def test_words_differ_ignoring_case_and_punctuation(target: str, donor: str, gained: str, lost: str) -> None:
    difference = compare_words(target, donor)
    assert (" ".join(difference.gained), " ".join(difference.lost)) == (gained, lost)


@given(st.lists(st.text("ab", min_size=10, max_size=12), max_size=20))
def test_short_ids_are_unique_beginnings(ids: list[str]) -> None:
    short = shorten(ids)
    assert len(short) == len(ids)
    for id_, prefix in zip(ids, short, strict=True):
        assert id_.startswith(prefix)
        assert len(prefix) >= SHORT
        others = {other for other in ids if other.startswith(prefix) and other != id_}
        assert not others or prefix == id_  # an id that another one begins with cannot be shortened


def test_short_ids_are_no_longer_than_needed() -> None:
    ids = ["aaaaaaaaaa11", "aaaaaaaaaa22", "bbbbbbbbbb33"]
    assert shorten(ids) == ["aaaaaaaaaa1", "aaaaaaaaaa2", "bbbbbbbb"]


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdefg", 6, "abcde…"),
        ("abcd efg", 6, "abcd…"),
        ("一二三四", 8, "一二三四"),
        ("一二三四", 7, "一二三…"),  # two columns each
        ("a\x1b[31m\nb", None, "a·[31m b"),
    ],
)
def test_text_is_cut_to_columns_and_made_safe(text: str, width: int | None, shown: str) -> None:
    assert one_line(text, width) == shown
