"""Time by which a job must have ended."""

from __future__ import annotations

import time
from dataclasses import dataclass

from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from google.protobuf.timestamp_pb2 import Timestamp

_TIMESTAMP_SECONDS = range(-62_135_596_800, 253_402_300_800)


@dataclass(frozen=True)
class Deadline:
    """Deadline of a job, as its spec states it."""

    time: Timestamp

    def passed(self) -> bool:
        return to_unix_seconds(self.time) <= time.time()

    def seconds_left(self) -> float:
        """Returns the seconds until the deadline, above 0. Raises DEADLINE_EXCEEDED once it has passed."""
        left = to_unix_seconds(self.time) - time.time()
        if left <= 0:
            raise self.exceeded()
        return left

    def exceeded(self) -> ChorusError:
        """Returns the error that ends a job whose deadline has passed."""
        deadline = self.time.ToJsonString()
        return ChorusError(
            errors.DEADLINE_EXCEEDED,
            f"the deadline {deadline} passed before the video was ready; submit it again with more time",
            metadata={"deadline": deadline},
        )


def is_valid_timestamp(timestamp: Timestamp) -> bool:
    """Returns whether protobuf defines the timestamp: a time between the years 1 and 9999."""
    return timestamp.seconds in _TIMESTAMP_SECONDS and 0 <= timestamp.nanos < 1_000_000_000


def to_unix_seconds(timestamp: Timestamp) -> float:
    return timestamp.seconds + timestamp.nanos / 1e9


def make_timestamp(seconds: float) -> Timestamp:
    """Returns a time in Unix seconds as a timestamp."""
    timestamp = Timestamp()
    timestamp.FromNanoseconds(int(seconds * 1e9))
    return timestamp
