"""Verifies when a job waits for a run under way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.dispatch.donors_in_flight import WaitingForDonors, pays

seconds = st.floats(0, 1e4)


@given(wait=st.floats(-1e4, 1e4), saved=st.floats(-1e4, 1e4))
def test_a_job_is_late_by_at_most_what_it_saves(wait: float, saved: float) -> None:
    if pays(wait, saved):
        assert saved > 0
        assert wait - saved <= saved


@given(wait=seconds, saved=seconds, more=seconds)
def test_a_shorter_wait_and_a_larger_saving_pay_as_well(wait: float, saved: float, more: float) -> None:
    if pays(wait, saved):
        assert pays(wait, saved + more)
        assert pays(wait - more, saved)


def test_jobs_wait_while_their_donors_run() -> None:
    waiting = WaitingForDonors()
    waiting.add("a", "x")
    waiting.add("b", "y")
    assert waiting.find_waiting({"x"}) == {"a"}
    assert "b" in waiting, "it has waited already"
    waiting.retain({"a"})
    assert ("a" in waiting, "b" in waiting, len(waiting)) == (True, False, 1)
