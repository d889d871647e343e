"""Event loop in a thread, on which the sync clients run the asyncio ones."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from chorus_rpc.errors import ChorusError

from chorus_client.lifetime import ClientClosed, Lifetime

T = TypeVar("T")


class LoopThread:
    """Event loop in its own thread, which `close` ends."""

    def __init__(self) -> None:
        self._lifetime = Lifetime()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chorus-client", daemon=True)
        self._thread.start()

    @property
    def is_usable(self) -> bool:
        """Whether `run` is possible: the loop is not closed, and this process owns it."""
        return not (self._lifetime.closed or self._lifetime.is_inherited)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop and returns its result.

        An interrupt (Ctrl-C) cancels the coroutine and is raised once its clean-up is done. Raises
        ClientClosed after `close` and if another thread closes the loop meanwhile, ForkedClient in a forked
        process, which lacks the thread, and RuntimeError in the loop's own thread, which would wait for
        itself.
        """
        if not self.is_usable:
            work.close()
            self._lifetime.check()
        self._reject_own_thread(work)
        tasks: list[asyncio.Task[Any] | None] = []

        async def tracked() -> T:
            tasks.append(asyncio.current_task())
            return await work

        future: Future[T] = asyncio.run_coroutine_threadsafe(tracked(), self._loop)
        try:
            return future.result()
        except CancelledError:
            if self._lifetime.closed:
                raise ClientClosed from None
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
        """Cancels the running calls, runs `last`, then ends the thread.

        Further calls have no effect, nor has a call in a forked process, which lacks the thread.
        """
        if not self.is_usable:
            self._lifetime.closed = True
            if last is not None:
                last.close()
            return
        self._reject_own_thread(last)
        self._lifetime.closed = True
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
