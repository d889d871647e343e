"""The one thread that owns the device, and what crosses the line between it and the event loop."""

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


class _Mark:
    """Stands in a run's queue beside its events."""


_BEGUN: Final = _Mark()
_ENDED: Final = _Mark()


class DeviceTask(Generic[E]):
    """One piece of work in the thread, and the events it brings, in order.

    The work is a generator; between two of its events the thread looks whether it was cancelled or is late.
    How many events wait to be read is bounded by how many the work yields.

    Args:
        deadline: on `time.monotonic`.
    """

    def __init__(self, work: Generator[E], deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        self._work = work
        self._deadline = deadline
        self._loop = loop
        self._cancelled = Event()
        self._events: asyncio.Queue[E | _Mark] = asyncio.Queue()
        self._future: Future[None] | None = None

    def cancel(self) -> None:
        """Ends the run at its next event, or before it begins. From any thread, any number of times."""
        self._cancelled.set()
        if self._future is not None:
            self._future.cancel()

    async def begun(self) -> None:
        """Returns when the thread takes the run up; raises what ended it before."""
        if await self._events.get() is _ENDED:
            self._raise()

    async def events(self) -> AsyncIterator[E]:
        """What the work yields; after the last event, raises what ended the work, if anything did."""
        while not isinstance(event := await self._events.get(), _Mark):
            yield event
        self._raise()

    def start(self, thread: ThreadPoolExecutor) -> None:
        self._future = thread.submit(self._execute)
        self._future.add_done_callback(lambda _: self._put(_ENDED))

    def _execute(self) -> None:
        with closing(self._work) as work:
            self._check()
            self._put(_BEGUN)
            for event in work:
                self._put(event)
                self._check()

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise ChorusError(errors.CANCELLED, "the run was cancelled")
        if time.monotonic() >= self._deadline:
            raise ChorusError(errors.DEADLINE_EXCEEDED, "the deadline passed before the run was done")

    def _put(self, event: E | _Mark) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _raise(self) -> None:
        assert self._future is not None
        try:
            self._future.result()
        except CancelledError:
            raise ChorusError(errors.CANCELLED, "the run was cancelled before it began") from None


class DeviceThread:
    """One thread for everything that touches the device.

    Args:
        queue_limit: how many runs may wait while one runs.
    """

    def __init__(self, queue_limit: int) -> None:
        self._queue_limit = queue_limit
        self._taken = 0
        self._seconds = 1.0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")

    def take_place(self) -> Callable[[], None]:
        """A place for one run; returns what gives it back, once however often it is called.

        Raises QUEUE_FULL, with the time after which to come back, when none is free. On the event loop.
        """
        if self._taken > self._queue_limit:
            raise ChorusError(
                errors.QUEUE_FULL,
                f"{self._queue_limit} runs wait for the device already; come back in {self._seconds:.1f} s",
                metadata={"service": "denoiser"},
                retry_after=self._seconds,
            )
        self._taken += 1
        begin = time.monotonic()
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._taken -= 1
                # About how long one place stays taken, smoothed.
                self._seconds += 0.2 * (max(0.1, min(60.0, time.monotonic() - begin)) - self._seconds)

        return give_back

    def submit(self, work: Generator[E], deadline: float) -> DeviceTask[E]:
        """Queues work behind what is there. The caller holds a place."""
        run = DeviceTask(work, deadline, asyncio.get_running_loop())
        run.start(self._thread)
        return run

    async def call(self, function: Callable[[], T]) -> T:
        """The result of `function`, called in the thread."""
        return await asyncio.wrap_future(self._thread.submit(function))

    async def close(self) -> None:
        """Ends the thread after the run it is at; those that wait are cancelled."""
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)
