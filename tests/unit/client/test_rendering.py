"""Tests of the lines that report the progress of a generation."""

from __future__ import annotations

import io

import pytest
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_cli.rendering import GenerationView
from rich.console import Console


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (plan_pb2.Plan(total_steps=4, seed=9), ["seed 9, the donor's, because the request states none"]),
        (plan_pb2.Plan(total_steps=4, seed=5), []),
        (plan_pb2.Plan(total_steps=4), []),  # of an earlier server
    ],
)
def test_another_seed_than_the_accepted_one_is_reported(plan: plan_pb2.Plan, expected: list[str]) -> None:
    out = io.StringIO()
    with GenerationView(Console(file=out, width=100)) as view:
        view.accepted(pb.Generation(generation_id="g", spec=pb.GenerationSpec(seed=5)))
        view.event(pb.GenerationEvent(planned=pb.PlannedEvent(plan=plan)))
    lines = out.getvalue().splitlines()
    assert [line for line in lines if line.startswith("seed ")] == expected
    assert lines[0] == "g accepted, seed 5"
