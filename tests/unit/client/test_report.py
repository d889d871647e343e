"""Tests of the report of `chorus explain`: it names the adapter that computed the first step."""

from __future__ import annotations

import pytest
from chorus.scheduler.v1.scheduler_pb2 import Generation, GenerationEvent, StartedEvent
from chorus_cli.explain.report import render_report, report_fields
from chorus_client.report import build_report


@pytest.mark.parametrize("adapter", ["", "host"])
def test_report_names_the_host_adapter(adapter: str) -> None:
    generation = Generation(generation_id="gen-1")
    generation.plan.total_steps, generation.plan.reuse_steps = 4, 3
    started = StartedEvent(reuse_steps=3, total_steps=4, host_adapter=adapter)
    report = build_report(generation, [GenerationEvent(started=started)])
    assert report_fields(report)["host_adapter"] == adapter
    assert ("adapter host computed the first step after the donor's" in render_report(report)) == bool(
        adapter
    )


def test_report_of_a_retry_without_the_donor_names_no_adapter() -> None:
    attempts = [StartedEvent(reuse_steps=3, host_adapter="host"), StartedEvent(attempt=2)]
    report = build_report(Generation(), [GenerationEvent(started=each) for each in attempts])
    assert report.host_adapter == ""


def test_report_names_the_donors_that_were_passed_over() -> None:
    generation = Generation(generation_id="gen-1")
    generation.plan.total_steps = 4
    generation.plan.passed_over.add(score=0.93, prompt="a red car", edit="size", reason="too little saved")
    generation.plan.passed_over.add(score=0.8, reason="its prompt was not compared")
    text = render_report(build_report(generation, []))
    assert 'passed over  "a red car" (score 0.930, size): too little saved' in text
    assert "a prompt that is not kept (score 0.800): its prompt was not compared" in text


def test_report_names_the_denoiser_of_the_last_run() -> None:
    generation = Generation(generation_id="gen-1", denoiser="10.0.0.2:7403")
    assert "ran on" not in render_report(build_report(generation, [])), "without a plan it did not run"
    generation.plan.total_steps = 4
    assert "ran on  denoiser 10.0.0.2:7403" in render_report(build_report(generation, []))


def test_steps_name_the_events_with_their_pictures() -> None:
    generation = Generation(generation_id="gen-1")
    generation.plan.total_steps = 3
    events = []
    for sequence, index, preview in ((5, 1, b"old"), (8, 1, b"new"), (9, 2, b""), (10, 3, b"x")):
        event = GenerationEvent(sequence=sequence)
        event.step_completed.step.index, event.step_completed.preview = index, preview
        events.append(event)
    assert [step.preview_event for step in build_report(generation, events).steps] == [8, 0, 10]
