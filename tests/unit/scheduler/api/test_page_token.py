"""Verifies that page tokens round-trip and that altered ones are rejected."""

from __future__ import annotations

import pytest
from chorus_rpc.errors import ChorusError
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.api import page_token


@given(st.integers(0, 2**63 - 1), st.integers(0, 6))
def test_page_token_round_trips(before: int, state: int) -> None:
    assert page_token.decode(page_token.encode(before, state), state) == before


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "!!!",
        "MTox",
        page_token.encode(2**63, 0),
        page_token.encode(5, 1),
        page_token.encode(5, 0)[:-2],
        "é",
    ],
)
def test_page_token_that_was_not_issued_is_rejected(token: str) -> None:
    with pytest.raises(ChorusError) as caught:
        page_token.decode(token, 0)
    assert [v.field for v in caught.value.violations] == ["page_token"]
