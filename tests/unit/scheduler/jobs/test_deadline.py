"""Verifies the deadline of a job."""

from __future__ import annotations

import time

import pytest
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from google.protobuf.timestamp_pb2 import Timestamp

from services.scheduler.jobs.deadline import Deadline, to_unix_seconds


def test_deadline_ahead_returns_the_seconds_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    assert Deadline(Timestamp(seconds=1_060)).seconds_left() == 60


def test_deadline_that_has_passed_raises_an_error_with_its_time() -> None:
    deadline = Deadline(Timestamp(seconds=1_700_000_000, nanos=500_000_000))
    with pytest.raises(ChorusError, match=r"2023-11-14T22:13:20\.500Z passed") as caught:
        deadline.seconds_left()
    assert caught.value.reason == errors.DEADLINE_EXCEEDED
    assert caught.value.metadata["deadline"] == "2023-11-14T22:13:20.500Z"


def test_timestamp_is_converted_with_its_nanoseconds() -> None:
    assert to_unix_seconds(Timestamp(seconds=3, nanos=250_000_000)) == 3.25
