"""Verifies which denoiser takes the next run."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.peers.selection import Candidate, select_denoiser

candidates = st.lists(
    st.builds(
        Candidate,
        address=st.sampled_from([f"10.0.0.{number}:7403" for number in range(9)]),
        running=st.integers(0, 5),
        slots=st.integers(1, 4),
        suspect=st.booleans(),
        last_run=st.integers(0, 9),
    ),
    unique_by=lambda candidate: candidate.address,
    max_size=9,
)


@given(candidates)
def test_selected_denoiser_has_a_free_slot_and_the_lowest_load(found: list[Candidate]) -> None:
    free = [each for each in found if each.running < each.slots]
    address = select_denoiser(found)
    if not free:
        assert address is None
        return
    [selected] = [each for each in free if each.address == address]
    assert not selected.suspect or all(each.suspect for each in free)
    for other in free:
        if other.suspect != selected.suspect:
            continue
        load, theirs = selected.running / selected.slots, other.running / other.slots
        assert load <= theirs
        if load == theirs:
            assert (-selected.last_run, selected.address) <= (-other.last_run, other.address)


@given(candidates, st.randoms())
def test_order_of_the_denoisers_does_not_matter(found: list[Candidate], rng: random.Random) -> None:
    shuffled = list(found)
    rng.shuffle(shuffled)
    assert select_denoiser(shuffled) == select_denoiser(found)


@given(st.integers(1, 5), st.integers(1, 4))
def test_runs_spread_evenly(count: int, slots: int) -> None:
    running = {f"10.0.0.{number}:7403": 0 for number in range(count)}
    for _ in range(count * slots):
        address = select_denoiser(Candidate(each, runs, slots) for each, runs in running.items())
        assert address is not None
        running[address] += 1
        assert max(running.values()) - min(running.values()) <= 1
    assert select_denoiser(Candidate(each, runs, slots) for each, runs in running.items()) is None


def test_denoiser_that_ran_the_model_last_is_preferred_among_equals() -> None:
    idle, latest = Candidate("a", 0, 2, last_run=3), Candidate("b", 0, 2, last_run=7)
    assert select_denoiser([idle, latest]) == "b"
    assert select_denoiser([idle, Candidate("b", 1, 2, last_run=7)]) == "a"
