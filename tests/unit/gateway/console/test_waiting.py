"""Verifies when a generation that waits is said to start, and the classes next to its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_client import Generation

from services.gateway.console.views.waiting import describe_waiting

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def make(priority: pb.Priority.ValueType = pb.PRIORITY_NORMAL, **fields: object) -> Generation:
    message = pb.Generation(state=pb.GENERATION_STATE_QUEUED, spec=pb.GenerationSpec(priority=priority))
    message.create_time.FromDatetime(NOW - timedelta(seconds=5))
    message.MergeFrom(pb.Generation(**fields))  # type: ignore[arg-type]
    return Generation.from_proto(message)


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (-3, "soon"),
        (0, "soon"),
        (1.4, "soon"),
        (1.6, "in about 2 s"),
        (40, "in about 40 s"),
        (61, "in about 1 min 1 s"),
    ],
)
def test_start_is_said_in_round_words(ahead: float, words: str) -> None:
    message = make().proto
    message.predicted_start_time.FromDatetime(NOW + timedelta(seconds=ahead))
    row = describe_waiting(Generation.from_proto(message), NOW)
    assert (row.start, row.seconds) == (words, 5.0)


def test_start_that_nothing_predicts_is_unknown() -> None:
    assert describe_waiting(make(), NOW).start == "unknown"
    waiting = make(state=pb.GENERATION_STATE_WAITING)
    assert describe_waiting(waiting, NOW).start == "when a service is back"


@pytest.mark.parametrize(
    ("priority", "lower", "higher"),
    [
        (pb.PRIORITY_UNSPECIFIED, "low", "high"),  # of earlier versions
        (pb.PRIORITY_LOW, "", "normal"),
        (pb.PRIORITY_NORMAL, "low", "high"),
        (pb.PRIORITY_HIGH, "normal", ""),
    ],
)
def test_classes_next_to_its_own(priority: pb.Priority.ValueType, lower: str, higher: str) -> None:
    row = describe_waiting(make(priority), NOW)
    assert (row.lower, row.higher) == (lower, higher)
