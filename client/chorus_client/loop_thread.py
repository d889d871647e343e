"""Event loop in a thread, on which the sync clients run the asyncio ones."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, Final, TypeVar

from chorus_rpc.errors import ChorusError

T = TypeVar("T")

_CLOSED: Final = "this client is closed"


class LoopThread:
    """Event loop in its own thread, which `close` ends."""

    def __init__(self) -> None:
        self.closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chorus-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop and returns its result.

        An interrupt (Ctrl-C) cancels the coroutine and is raised once its clean-up is done. Raises
        RuntimeError after `close`, if another thread closes the loop meanwhile, and in the loop's own thread,
        which would wait for itself.
        """
        if self.closed:
            work.close()
            raise RuntimeError(_CLOSED)
        self._reject_own_thread(work)
        tasks: list[asyncio.Task[Any] | None] = []

        async def tracked() -> T:
            tasks.append(asyncio.current_task())
            return await work

        future: Future[T] = asyncio.run_coroutine_threadsafe(tracked(), self._loop)
        try:
            return future.result()
        except CancelledError:
            if self.closed:
                raise RuntimeError(_CLOSED) from None
            raise
        except KeyboardInterrupt:
            # Cancelled through its task, not the future, so that its clean-up can be waited for.
            for task in tasks:
                if task is not None:
                    self._loop.call_soon_threadsafe(task.cancel)
            with contextlib.suppress(CancelledError, ChorusError):
                future.result()
            raise

    def start(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs the first coroutine; ends the thread if that fails."""
        try:
            return self.run(work)
        except BaseException:
            self.close()
            raise

    def close(self, last: Coroutine[Any, Any, None] | None = None) -> None:
        """Cancels the running calls, runs `last`, then ends the thread. Further calls have no effect."""
        if self.closed:
            if last is not None:
                last.close()
            return
        self._reject_own_thread(last)
        self.closed = True
        try:
            asyncio.run_coroutine_threadsafe(_finish(last), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _reject_own_thread(self, work: Coroutine[Any, Any, Any] | None) -> None:
        if threading.current_thread() is self._thread:
            if work is not None:
                work.close()
            raise RuntimeError("a callback must not call the client, whose thread it runs in")


async def _finish(last: Coroutine[Any, Any, None] | None) -> None:
    """Cancels the other tasks of the loop, for which a thread may wait, and then runs `last`."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if last is not None:
        await last
