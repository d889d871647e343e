"""Tests of the device thread: order, cancellation, deadlines, errors and limit; gated by events, not time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator
from threading import Event, get_ident

import pytest
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.denoiser.device_thread import DeviceFailed, DeviceTask, DeviceThread

WAIT = 20.0
LATE = errors.time_limit_exceeded("CHORUS_DENOISER_RUN_SECONDS", "the run took too long")


@pytest.fixture
async def device_thread() -> AsyncIterator[DeviceThread]:
    thread = DeviceThread(queue_limit=2)
    yield thread
    await thread.close()


def later() -> float:
    return time.monotonic() + 60


def counting(n: int, seen: list[int], gate: Event | None = None) -> Generator[int]:
    """Yields 0 … n − 1; waits for the gate before each but the first."""
    try:
        for i in range(n):
            if i and gate is not None:
                assert gate.wait(WAIT)
            seen.append(i)
            yield i
    finally:
        seen.append(-1)


async def collect(run: DeviceTask[int]) -> list[int]:
    await run.wait_until_started()
    return [event async for event in run.events()]


async def failure_reason(run: DeviceTask[int]) -> errors.Reason:
    with pytest.raises(ChorusError) as caught:
        await collect(run)
    return caught.value.reason


async def test_events_arrive_in_order_and_tasks_run_one_after_the_other(device_thread: DeviceThread) -> None:
    seen: list[int] = []
    runs = [device_thread.submit(counting(4, seen), later(), LATE) for _ in range(3)]
    assert [await collect(run) for run in runs] == [[0, 1, 2, 3]] * 3
    assert seen == [0, 1, 2, 3, -1] * 3


async def test_calls_run_on_one_other_thread(device_thread: DeviceThread) -> None:
    assert await device_thread.call(get_ident) != get_ident()
    assert await device_thread.call(get_ident) == await device_thread.call(get_ident)


async def test_task_is_cancelled_between_two_events(device_thread: DeviceThread) -> None:
    seen: list[int] = []
    gate = Event()
    run = device_thread.submit(counting(100, seen, gate), later(), LATE)
    await run.wait_until_started()
    assert await anext(run.events()) == 0
    run.cancel()
    gate.set()
    assert await remaining_failure_reason(run) == errors.CANCELLED
    # The running step is finished, no other starts, and the work is closed.
    await device_thread.call(lambda: None)
    assert seen in ([0, -1], [0, 1, -1])


async def remaining_failure_reason(run: DeviceTask[int]) -> errors.Reason:
    with pytest.raises(ChorusError) as caught:
        async for _ in run.events():
            pass
    return caught.value.reason


async def test_task_cancelled_while_waiting_never_starts(device_thread: DeviceThread) -> None:
    gate, first, second = Event(), list[int](), list[int]()
    running = device_thread.submit(counting(2, first, gate), later(), LATE)
    await running.wait_until_started()
    waiting = device_thread.submit(counting(2, second), later(), LATE)
    waiting.cancel()
    waiting.cancel()
    assert await failure_reason(waiting) == errors.CANCELLED
    gate.set()
    assert [event async for event in running.events()] == [0, 1]
    await device_thread.call(lambda: None)
    assert second == []


async def test_task_past_its_deadline_never_starts(device_thread: DeviceThread) -> None:
    seen: list[int] = []
    assert (
        await failure_reason(device_thread.submit(counting(3, seen), time.monotonic(), LATE))
        == errors.TIME_LIMIT_EXCEEDED
    )
    assert seen == []


async def test_deadline_ends_a_task_between_two_events(device_thread: DeviceThread) -> None:
    seen: list[int] = []
    deadline = time.monotonic() + 0.5

    def slow() -> Generator[int]:
        seen.append(0)
        yield 0
        while time.monotonic() < deadline:
            Event().wait(0.01)
        yield 1
        seen.append(2)
        yield 2

    run = device_thread.submit(slow(), deadline, LATE)
    assert await failure_reason(run) == errors.TIME_LIMIT_EXCEEDED
    assert seen == [0]


async def test_error_ends_only_its_own_task(device_thread: DeviceThread) -> None:
    def broken() -> Generator[int]:
        yield 0
        raise ZeroDivisionError("broken")

    run = device_thread.submit(broken(), later(), LATE)
    await run.wait_until_started()
    events = run.events()
    assert await anext(events) == 0
    with pytest.raises(ZeroDivisionError, match="broken"):
        await anext(events)
    assert await collect(device_thread.submit(counting(2, []), later(), LATE)) == [0, 1]


@pytest.mark.fault("logging")
async def test_failed_device_ends_the_watch(device_thread: DeviceThread) -> None:
    """The watch is an essential task, so that its end ends the process."""

    def fail() -> Generator[int]:
        yield 0
        raise DeviceFailed("an illegal memory access")

    watch = asyncio.create_task(device_thread.watch())
    assert await collect(device_thread.submit(counting(1, []), later(), LATE)) == [0]
    assert not watch.done()
    assert await failure_reason(device_thread.submit(fail(), later(), LATE)) == errors.DEPENDENCY_UNAVAILABLE
    with pytest.raises(DeviceFailed, match="an illegal memory access"):
        await asyncio.wait_for(watch, WAIT)


async def test_places_are_limited_and_released(device_thread: DeviceThread) -> None:
    places = [device_thread.reserve_place() for _ in range(3)]  # one runs, two wait
    with pytest.raises(ChorusError) as caught:
        device_thread.reserve_place()
    assert caught.value.reason == errors.QUEUE_FULL
    assert caught.value.retry_after
    places[0]()
    places[0]()
    again = device_thread.reserve_place()
    with pytest.raises(ChorusError):
        device_thread.reserve_place()
    for release in (again, *places[1:]):
        release()


async def test_closing_cancels_waiting_tasks_and_finishes_the_running_one() -> None:
    device_thread = DeviceThread(queue_limit=2)
    gate = Event()
    running = device_thread.submit(counting(2, [], gate), later(), LATE)
    await running.wait_until_started()
    waiting = device_thread.submit(counting(2, []), later(), LATE)
    closing = asyncio.create_task(device_thread.close())
    assert await failure_reason(waiting) == errors.CANCELLED
    gate.set()
    assert [event async for event in running.events()] == [0, 1]
    await closing
