"""Verifies the pauses between attempts: they grow, are bounded, and end."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.webhooks.backoff import Backoff

DAY = Backoff(first=5.0, longest=3_600.0, give_up=86_400.0)
SHARES = st.floats(0, 1)


def test_pauses_double_up_to_the_longest() -> None:
    pauses = [DAY.next_pause(attempts, 0.0, lambda: 1.0) for attempts in range(1, 14)]
    assert pauses == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]


@given(st.integers(1, 10_000), st.floats(0, 1e6), SHARES)
def test_pause_is_at_least_half_of_the_longest_possible_and_never_passes_the_end(
    attempts: int, age: float, share: float
) -> None:
    pause = DAY.next_pause(attempts, age, lambda: share)
    full = min(3_600.0, 5.0 * 2.0 ** min(attempts - 1, 64))
    if age >= 86_400:
        assert pause is None
    else:
        assert pause is not None
        assert min(full / 2, 86_400 - age) <= pause <= min(full, 86_400 - age)


@given(st.integers(1, 100), st.floats(0, 86_000), SHARES, st.floats(0, 1e9))
def test_requested_pause_is_kept_within_the_bounds(
    attempts: int, age: float, share: float, requested: float
) -> None:
    own = DAY.next_pause(attempts, age, lambda: share)
    pause = DAY.next_pause(attempts, age, lambda: share, requested)
    assert own is not None
    assert pause == min(max(own, min(requested, DAY.longest)), DAY.give_up - age)


@given(st.floats(0.01, 3_600), st.floats(0.01, 86_400), st.floats(1, 604_800), st.randoms())
def test_attempts_end_within_the_time(first: float, longest: float, give_up: float, random: Random) -> None:
    backoff = Backoff(first, max(first, longest, give_up / 500), give_up)
    age, attempts = 0.0, 1
    while (pause := backoff.next_pause(attempts, age, random.random)) is not None:
        assert pause > 0
        age += pause
        attempts += 1
        assert attempts < 2_000
    assert give_up <= age <= give_up * (1 + 1e-9)
