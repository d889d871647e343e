"""Tests of the breaker: its states under any sequence of events, and the guard that probes."""

from __future__ import annotations

import asyncio

import pytest
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from hypothesis import given
from hypothesis import strategies as st

from services.runtime import breaker as breaker_module
from services.runtime.breaker import Breaker, Guard, State

pytestmark = pytest.mark.fault("silent-dependency")

FIRST, LONGEST = 0.5, 4.0

EVENTS = st.lists(
    st.one_of(
        st.sampled_from(["trip", "begin", "answered", "unanswered"]),
        st.floats(0, 10, allow_nan=False),
    ),
    max_size=60,
)


@given(EVENTS)
def test_breaker_keeps_its_invariants_under_any_events(events: list[str | float]) -> None:
    now = 0.0
    breaker = Breaker(FIRST, LONGEST, lambda: now)
    failed_probes = 0
    for event in events:
        before = breaker.state
        if isinstance(event, float):
            now += event
        elif event == "trip":
            assert breaker.trip() == (before is State.CLOSED)
            assert breaker.state is (State.OPEN if before is State.CLOSED else before)
            failed_probes = 0 if before is State.CLOSED else failed_probes
        elif event == "begin":
            due = before is State.OPEN and breaker.seconds_until_probe() == 0
            assert breaker.begin_probe() == due
            assert breaker.state is (State.HALF_OPEN if due else before)
        elif before is State.HALF_OPEN:
            breaker.end_probe(event == "answered")
            assert breaker.state is (State.CLOSED if event == "answered" else State.OPEN)
            failed_probes += event == "unanswered"
            if breaker.state is State.OPEN:
                expected = min(FIRST * 2**failed_probes, LONGEST)
                assert breaker.seconds_until_probe() == pytest.approx(expected)
        else:
            with pytest.raises(RuntimeError):
                breaker.end_probe(event == "answered")
        assert 0 <= breaker.seconds_until_probe() <= LONGEST


@given(st.integers(0, 20))
def test_breaker_closes_after_the_first_probe_that_is_answered(failures: int) -> None:
    now = 0.0
    breaker = Breaker(FIRST, LONGEST, lambda: now)
    breaker.trip()
    for answered in [False] * failures + [True]:
        now += breaker.seconds_until_probe()
        assert breaker.begin_probe()
        breaker.end_probe(answered)
    assert breaker.state is State.CLOSED


@pytest.fixture
def sensitive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every failed call a sign of silence, however fast it failed."""
    monkeypatch.setattr(breaker_module, "SILENCE_SECONDS", 0.0)


async def test_guard_refuses_calls_until_a_probe_is_answered() -> None:
    answering, probes = False, 0
    probed_thrice, resumed = asyncio.Event(), asyncio.Event()
    changes: list[bool] = []

    async def probe() -> None:
        nonlocal probes
        probes += 1
        if probes == 3:
            probed_thrice.set()
        if not answering:
            raise OSError("silent")

    def record_change() -> None:
        changes.append(guard.is_open)
        if not guard.is_open:
            resumed.set()

    guard = Guard("cache", probe, on_change=record_change, max_pause=0.02)
    guard.report_silence("no answer in 2 s")
    guard.report_silence("no answer in 3 s")
    for _ in range(5):
        with pytest.raises(ChorusError, match="no answer in 2 s; calls are suspended"), guard.call():
            raise AssertionError("the call was made")
    async with asyncio.timeout(10):
        await probed_thrice.wait()
        assert guard.is_open
        answering = True
        await resumed.wait()
    with guard.call():
        pass
    assert changes == [True, False]
    await guard.close()


@pytest.mark.fault("logging")
async def test_early_end_of_the_probes_permits_calls_again() -> None:
    """gRPC raises CancelledError in a call that its channel cancels, which ends the task of the probes."""
    resumed = asyncio.Event()

    async def probe() -> None:
        raise asyncio.CancelledError

    guard = Guard("cache", probe, on_change=lambda: None if guard.is_open else resumed.set(), max_pause=0.01)
    guard.report_silence("no answer in 2 s")
    assert guard.is_open
    async with asyncio.timeout(10):
        await resumed.wait()
    with guard.call():
        pass
    guard.report_silence("no answer in 3 s")
    assert guard.is_open, "a later silence is noticed"
    await guard.close()


async def test_probe_that_hangs_ends_with_the_guard() -> None:
    started = asyncio.Event()

    async def probe() -> None:
        started.set()
        await asyncio.Event().wait()

    guard = Guard("cache", probe)
    guard.report_silence("no answer in 2 s")
    await started.wait()
    await guard.close()
    assert guard.is_open


@pytest.mark.usefixtures("sensitive")
@pytest.mark.parametrize(
    ("error", "silent"),
    [
        (ChorusError(errors.DEADLINE_EXCEEDED, "late"), True),
        (errors.unavailable("cache", "no connection"), True),
        (asyncio.CancelledError(), False),
        (errors.not_found("entry", "e"), False),
        (errors.invalid("steps", "must be sorted"), False),
    ],
)
async def test_slow_call_without_an_answer_suspends_calls(error: BaseException, silent: bool) -> None:
    guard = Guard("cache", asyncio.Event().wait)
    with pytest.raises(type(error)), guard.call():
        raise error
    assert guard.is_open == silent
    await guard.close()


async def test_call_that_fails_at_once_suspends_nothing() -> None:
    guard = Guard("cache", asyncio.Event().wait)
    with pytest.raises(ChorusError), guard.call():
        raise errors.unavailable("cache", "connection refused")
    assert not guard.is_open


@pytest.mark.usefixtures("sensitive")
@pytest.mark.parametrize("answering", [True, False])
async def test_call_that_its_caller_abandons_suspends_calls_only_after_a_failed_probe(
    answering: bool,
) -> None:
    probes = 0

    async def probe() -> None:
        nonlocal probes
        probes += 1
        if not answering:
            raise OSError("silent")

    guard = Guard("cache", probe, max_pause=60)
    for _ in range(3):
        with pytest.raises(asyncio.CancelledError), guard.call(600):
            raise asyncio.CancelledError
        assert not guard.is_open
    await guard.settled()
    assert probes == 1
    assert guard.is_open != answering
    await guard.close()


async def test_abandoned_call_that_used_up_its_limit_suspends_calls_at_once() -> None:
    guard = Guard("cache", asyncio.Event().wait)

    async def wait() -> None:
        with guard.call(0.01):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wait(), 0.02)
    assert guard.is_open
    await guard.close()
