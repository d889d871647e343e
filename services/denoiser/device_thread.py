"""The single thread that owns the device, and the tasks that the event loop submits to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from threading import Event
from typing import Final, Generic, TypeVar

from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

T = TypeVar("T")
E = TypeVar("E")


class DeviceFailed(ChorusError):
    """Failure of the device after which no further work can run on it in this process."""

    def __init__(self, cause: str) -> None:
        super().__init__(
            errors.DEPENDENCY_UNAVAILABLE,
            f"the device failed, and the denoiser restarts: {cause}",
            metadata={"service": "denoiser"},
            retry_after=1.0,
        )


class _Mark:
    """Marks the beginning and the end of a task among its events."""


_STARTED: Final = _Mark()
_ENDED: Final = _Mark()


class DeviceTask(Generic[E]):
    """One task on the device thread, and its events in order.

    The work is a generator; after each of its events the thread checks for cancellation and the deadline. The
    number of unread events is bounded by the number that the work yields.

    Args:
        deadline: Time on the clock of `time.monotonic`, in seconds.
        late: Error that ends the work at its deadline.
    """

    def __init__(
        self, work: Generator[E], deadline: float, late: ChorusError, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._work = work
        self._deadline = deadline
        self._late = late
        self._loop = loop
        self._cancelled = Event()
        self._events: asyncio.Queue[E | _Mark] = asyncio.Queue()
        self._future: Future[None] | None = None

    def cancel(self) -> None:
        """Ends the task at its next event, or before it begins. Thread-safe; may be called repeatedly."""
        self._cancelled.set()
        if self._future is not None:
            self._future.cancel()

    async def wait_until_started(self) -> None:
        """Returns when the thread starts the task; raises the error that ended it before."""
        if await self._events.get() is _ENDED:
            self._raise_error()

    async def events(self) -> AsyncIterator[E]:
        """Yields the events of the work; then raises the error that ended the work, if any."""
        while not isinstance(event := await self._events.get(), _Mark):
            yield event
        self._raise_error()

    def start(self, submit: Callable[[Callable[[], None]], Future[None]]) -> None:
        """Queues the task with `submit`. Called once, by `DeviceThread`."""
        self._future = submit(self._execute)
        self._future.add_done_callback(lambda _: self._put(_ENDED))

    def _execute(self) -> None:
        with closing(self._work) as work:
            self._check()
            self._put(_STARTED)
            for event in work:
                self._put(event)
                self._check()

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise ChorusError(errors.CANCELLED, "the run was cancelled")
        if time.monotonic() >= self._deadline:
            raise self._late

    def _put(self, event: E | _Mark) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _raise_error(self) -> None:
        assert self._future is not None
        try:
            self._future.result()
        except CancelledError:
            raise ChorusError(errors.CANCELLED, "the run was cancelled before it started") from None


class DeviceThread:
    """Runs everything that uses the device, one task at a time.

    Args:
        queue_limit: Number of runs that may wait while one runs.
    """

    def __init__(self, queue_limit: int) -> None:
        self._queue_limit = queue_limit
        self._places_taken = 0
        self._seconds_per_place = 1.0  # moving average of a run's duration, in seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._failed: Future[None] = Future()

    async def watch(self) -> None:
        """Raises DeviceFailed once work has failed with it; runs until then, or until it is cancelled."""
        await asyncio.wrap_future(self._failed)

    def reserve_place(self) -> Callable[[], None]:
        """Reserves a place for one run. Returns a function that releases it; further calls have no effect.

        Call both on the event loop. Raises QUEUE_FULL with a retry delay if all places are taken.
        """
        if self._places_taken > self._queue_limit:
            delay = self._seconds_per_place
            raise ChorusError(
                errors.QUEUE_FULL,
                f"{self._queue_limit} runs already wait for the device (CHORUS_DENOISER_QUEUE_LIMIT);"
                f" retry in {delay:.1f} s",
                metadata={"service": "denoiser"},
                retry_after=delay,
            )
        self._places_taken += 1
        begin = time.monotonic()
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                self._places_taken -= 1
                seconds = max(0.1, min(60.0, time.monotonic() - begin))
                self._seconds_per_place += 0.2 * (seconds - self._seconds_per_place)

        return release

    def submit(self, work: Generator[E], deadline: float, late: ChorusError) -> DeviceTask[E]:
        """Queues work after all earlier tasks. The caller must hold a place.

        Args:
            deadline, late: As for `DeviceTask`.
        """
        task = DeviceTask(work, deadline, late, asyncio.get_running_loop())
        task.start(self._submit)
        return task

    async def call(self, function: Callable[[], T]) -> T:
        """Calls `function` on the thread and returns its result."""
        return await asyncio.wrap_future(self._submit(function))

    def _submit(self, function: Callable[[], T]) -> Future[T]:
        future = self._thread.submit(function)
        future.add_done_callback(self._check_device)
        return future

    def _check_device(self, future: Future[T]) -> None:
        failure = None if future.cancelled() else future.exception()
        if isinstance(failure, DeviceFailed) and not self._failed.done():
            self._failed.set_exception(failure)

    async def close(self) -> None:
        """Ends the thread after the current task; waiting tasks are cancelled."""
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)
