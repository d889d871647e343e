"""Blocking calls to one dependency: beside the event loop, bounded in number and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from chorus_rpc.errors import ChorusError, unavailable

from services.runtime.logs import get_logger

log = get_logger("cache.worker")

T = TypeVar("T")


class BlockingClient:
    """Threads of their own for a blocking client.

    Args:
        service: the name in errors, for instance "milvus".
        threads: calls at once; 1 serialises them.
        seconds: the longest a caller waits, the queue included. A call that is running when its caller gives
            up runs on in its thread: the client's own timeout ends it.
        faults: the exceptions of the client that mean it does not answer.
    """

    def __init__(
        self, service: str, threads: int, seconds: float, faults: tuple[type[Exception], ...]
    ) -> None:
        self.service = service
        self._seconds = seconds
        self._faults = faults
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"cache-{service}")

    async def run(self, call: Callable[[], T], seconds: float | None = None) -> T:
        """The result of `call`; raises DEPENDENCY_UNAVAILABLE that names the service.

        Args:
            seconds: instead of the usual limit.
        """
        limit = seconds or self._seconds
        try:
            async with asyncio.timeout(limit):
                return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except TimeoutError as error:
            raise unavailable(self.service, f"no answer within {limit:g} s") from error
        except self._faults as error:
            log.warning("call failed", dependency=self.service, error=str(error)[:500])
            raise unavailable(self.service, f"{type(error).__name__}, see the cache's log") from error

    async def close(self) -> None:
        """Waits for running calls, drops those still queued."""
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)


async def until_up(worker: BlockingClient, call: Callable[[], T], seconds: float) -> T:
    """The result of `call`, tried again with growing pauses: a dependency may start later than the cache.

    Ends when its caller is cancelled, which the server does after `startup_seconds`.
    """
    pause = 0.2
    while True:
        try:
            return await worker.run(call, seconds)
        except ChorusError as error:
            log.warning("waiting", dependency=worker.service, reason=error.message, again_in_seconds=pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 5.0)
