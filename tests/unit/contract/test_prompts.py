"""Verifies which prompts hold text, and the bound on their length."""

from __future__ import annotations

import pytest
from chorus_rpc.limits import MAX_PROMPT_BYTES
from hypothesis import given
from hypothesis import strategies as st

from services.contract.prompts import find_prompt_fault, has_text
from services.embedder.encoders.cleaning import clean_prompt

pytestmark = pytest.mark.fault("number-promises")

EMPTY = [
    "&nbsp;",
    "&amp;nbsp; &#160;",
    "&#8203;&#x200B;",
    "\u200b\u200d\ufeff",
    "\u00ad",  # soft hyphen
    "\x00\x07",
    "\x1b[31m\x1b[0m",
    "\u3164",
    "\u0301",  # an accent without a letter
    "\u202e\u2066",
]


@pytest.mark.parametrize("prompt", EMPTY, ids=ascii)
def test_prompt_without_text_is_named(prompt: str) -> None:
    fault = find_prompt_fault(prompt)
    assert fault is not None
    assert "holds no text" in fault


@pytest.mark.parametrize(
    "prompt", ["a", "7", "?", "&lt;3", "🐟", "赤い車", "নৌকা", "&amp;", "e\u0301", "\u200ba"]
)
def test_prompt_with_text_is_valid(prompt: str) -> None:
    assert find_prompt_fault(prompt) is None


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_prompt_with_text_is_not_empty_after_cleaning(prompt: str) -> None:
    """Verifies that no accepted prompt reaches the encoder as an empty text."""
    if has_text(prompt):
        assert clean_prompt(prompt)


@given(st.sampled_from(["x", "é", "赤", "🐟"]), st.integers(-3, 3), st.sampled_from(["", " ", "\n\t"]))
def test_length_is_bounded_in_bytes_without_surrounding_space(character: str, extra: int, space: str) -> None:
    count = MAX_PROMPT_BYTES // len(character.encode()) + extra
    fault = find_prompt_fault(space + character * count + space)
    if count * len(character.encode()) <= MAX_PROMPT_BYTES:
        assert fault is None
    else:
        assert fault is not None
        assert f"1 to {MAX_PROMPT_BYTES} bytes" in fault


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_blank_prompt_is_named_by_its_length(prompt: str) -> None:
    fault = find_prompt_fault(prompt)
    assert fault is not None
    assert "not 0" in fault
