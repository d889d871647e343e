"""Verifies ranges of videos and lifetimes of URLs by their bounds."""

from __future__ import annotations

import pytest
from chorus_rpc.errors import ChorusError
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.api.videos import check_range, parse_lifetime

BYTES = st.integers(0, 2**64 - 1)


@given(offset=BYTES, length=BYTES, size=st.integers(1, 2**40))
def test_accepted_range_is_inside_the_video(offset: int, length: int, size: int) -> None:
    inside = offset < size and offset + length <= size
    try:
        check_range(offset, length, size)
    except ChorusError as error:
        assert not inside
        [violation] = error.violations
        assert violation.field == ("length" if offset < size else "offset")
        assert str(size if offset >= size else size - offset) in violation.description
    else:
        assert inside


@pytest.mark.parametrize("nanoseconds", [10**9, 10**9 + 1, 7 * 86_400 * 10**9])
def test_lifetime_is_rounded_down(nanoseconds: int) -> None:
    lifetime = Duration()
    lifetime.FromNanoseconds(nanoseconds)
    assert parse_lifetime(lifetime) == nanoseconds // 10**9


@pytest.mark.parametrize("lifetime", [Duration(), Duration(seconds=-5), Duration(seconds=604_801)])
def test_lifetime_outside_its_bounds_is_rejected(lifetime: Duration) -> None:
    with pytest.raises(ChorusError, match=r"lifetime: must be 1 second to 604800 seconds"):
        parse_lifetime(lifetime)
