"""Verifies how the Retry-After header of a receiver is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.webhooks.poster import parse_retry_after

NOW = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("Wed, 21 Oct 2015 07:29:30 GMT", 90.0),
        ("Wed, 21 Oct 2015 07:29:30 -0000", 90.0),
        ("Wed, 21 Oct 2015 06:00:00 GMT", 0.0),
        ("", 0.0),
        ("-5", 0.0),
        ("1.5", 0.0),
        ("soon", 0.0),
        ("Wed, 21 Oct 99999 07:28:00 GMT", 0.0),
        ("9" * 10_000, 999_999_999.0),
    ],
)
def test_header_is_seconds_or_a_date(value: str, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == seconds


@given(st.text(max_size=60))
def test_any_text_is_a_pause_of_at_least_zero(value: str) -> None:
    assert parse_retry_after(value, NOW) >= 0
