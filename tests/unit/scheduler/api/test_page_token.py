"""Verifies that page tokens round-trip, and that altered ones and those of other filters are rejected."""

from __future__ import annotations

import pytest
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.errors import ChorusError
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.api import page_token

LIST = pb.ListGenerationsRequest(labels={"a": "1", "b": "2"}, prompt_contains="red")
FILTERS = st.builds(
    pb.ListGenerationsRequest,
    state=st.integers(0, 6),
    labels=st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy")),
    prompt_contains=st.sampled_from(("", "red", "blue")),
    created_after=st.none() | st.builds(Timestamp, seconds=st.integers(0, 3)),
    created_before=st.none() | st.builds(Timestamp, seconds=st.integers(0, 3)),
)


def with_token(token: str, request: pb.ListGenerationsRequest = LIST) -> pb.ListGenerationsRequest:
    following = pb.ListGenerationsRequest()
    following.CopyFrom(request)
    following.page_token = token
    return following


@given(st.integers(0, 2**63 - 1), FILTERS, FILTERS, st.integers(0, 200))
def test_page_token_is_valid_for_its_filters_alone(
    before: int, request: pb.ListGenerationsRequest, other: pb.ListGenerationsRequest, page_size: int
) -> None:
    token = page_token.encode(before, request)
    following = with_token(token, request)
    following.page_size = page_size  # may change from page to page
    assert page_token.decode(following) == before
    if other != request:
        with pytest.raises(ChorusError, match="other filters"):
            page_token.decode(with_token(token, other))


def test_order_of_labels_does_not_matter() -> None:
    reordered = pb.ListGenerationsRequest(labels={"b": "2", "a": "1"}, prompt_contains="red")
    assert page_token.decode(with_token(page_token.encode(5, LIST), reordered)) == 5


def test_first_page_has_no_token() -> None:
    assert page_token.decode(LIST) is None


@pytest.mark.parametrize(
    "token",
    ["x", "!!!", "MTox", page_token.encode(2**63, LIST), page_token.encode(5, LIST)[:-2], "é"],
)
def test_page_token_that_was_not_issued_is_rejected(token: str) -> None:
    with pytest.raises(ChorusError) as caught:
        page_token.decode(with_token(token))
    assert [v.field for v in caught.value.violations] == ["page_token"]
