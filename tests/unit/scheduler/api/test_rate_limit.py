"""Verifies the token buckets: what they accept in any span of time, and that the announced wait is true."""

from __future__ import annotations

import pytest
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.api.rate_limit import RateLimit, TokenBuckets

intervals = st.integers(1, 10**11)
bursts = st.integers(1, 20)
pauses = st.lists(st.integers(0, 3 * 10**11), max_size=60)


def times(pauses: list[int], start: int = 0) -> list[int]:
    now = start
    return [now := now + pause for pause in pauses]


@given(intervals, bursts, pauses)
def test_no_span_of_time_has_more_than_the_burst_and_a_token_per_interval(
    interval: int, burst: int, pauses: list[int]
) -> None:
    buckets = TokenBuckets(interval, burst)
    accepted = [now for now in times(pauses) if buckets.take("a", now) == 0]
    for first, begin in enumerate(accepted):
        for last in range(first, len(accepted)):
            assert last - first + 1 <= burst + (accepted[last] - begin) // interval


@given(intervals, bursts, pauses)
def test_token_exists_when_it_was_announced_and_no_sooner(
    interval: int, burst: int, pauses: list[int]
) -> None:
    buckets = TokenBuckets(interval, burst)
    for now in times(pauses):
        wait = buckets.take("a", now)
        assert 0 <= wait <= interval
        if wait:
            # Asking changes nothing.
            assert buckets.take("a", now + wait - 1) == 1
            assert buckets.take("a", now + wait) == 0
            break


@given(intervals, bursts, st.integers(0, 10**12))
def test_full_bucket_gives_its_burst_at_once_and_then_a_token_per_interval(
    interval: int, burst: int, start: int
) -> None:
    buckets = TokenBuckets(interval, burst)
    assert [buckets.take("a", start) for _ in range(burst)] == [0] * burst
    assert buckets.take("a", start) == interval
    assert [buckets.take("a", start + n * interval) for n in range(1, 6)] == [0] * 5
    # After a pause it is full again, and not fuller.
    later = start + (burst + 100) * interval
    assert [buckets.take("a", later) for _ in range(burst)] == [0] * burst
    assert buckets.take("a", later) > 0


@given(intervals, bursts, st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**11)), max_size=40))
def test_buckets_do_not_share_tokens(interval: int, burst: int, calls: list[tuple[str, int]]) -> None:
    together, alone = TokenBuckets(interval, burst), TokenBuckets(interval, burst)
    now = 0
    for name, pause in calls:
        now += pause
        wait = together.take(name, now)
        if name == "a":
            assert wait == alone.take("a", now)


def test_buckets_that_are_full_again_are_dropped() -> None:
    buckets = TokenBuckets(10, 1)
    for number in range(10_000):
        assert buckets.take(f"t{number}", 20 * number) == 0
    assert len(buckets) <= 1_001


def test_refusal_names_the_setting_and_the_time_after_which_a_request_is_accepted() -> None:
    now = 5_000
    limit = RateLimit(7, 2, clock=lambda: now)
    limit.take("acme")
    limit.take("acme")
    with pytest.raises(ChorusError) as refused:
        limit.take("acme")
    error = refused.value
    assert error.reason == errors.RATE_LIMITED
    assert "CHORUS_SCHEDULER_TENANT_REQUESTS_PER_MINUTE" in error.message
    assert error.metadata["limit"] == "7"
    assert error.retry_after is not None
    assert error.retry_after == pytest.approx(60 / 7, abs=0.001)
    limit.take("beta")
    now += int(error.retry_after * 1e9)
    limit.take("acme")


def test_limit_of_zero_accepts_everything() -> None:
    limit = RateLimit(0, 1, clock=lambda: 0)
    for _ in range(10_000):
        limit.take("acme")
