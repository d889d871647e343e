"""Blocking calls to one dependency, off the event loop and bounded in number and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from chorus_rpc.errors import ChorusError, unavailable

from services.runtime.breaker import PROBE_SECONDS, Guard
from services.runtime.logs import get_logger
from services.runtime.startup import StartupError, progress

log = get_logger("blocking_client")

T = TypeVar("T")


class BlockingClient:
    """Runs the calls of a blocking client in its own threads.

    Args:
        service: name in errors, for instance "milvus".
        threads: number of concurrent calls; 1 serialises them.
        seconds: upper bound on the wait of a caller, in seconds, including the queue. A call that outlives
            its caller continues in its thread until the client's own timeout.
        faults: exceptions of the client that mean the dependency does not answer.
        setting: environment variable that sets `seconds`.

    Attributes:
        owner: name of the service that makes the calls, in errors.
    """

    owner = "service"

    def __init__(
        self,
        service: str,
        threads: int,
        seconds: float,
        faults: tuple[type[Exception], ...],
        setting: str = "",
    ) -> None:
        self.service = service
        self._seconds = seconds
        self._faults = faults
        self._setting = setting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"{self.owner}-{service}")
        self._guard: Guard | None = None

    def suspend_when_silent(self, probe: Callable[[], object]) -> None:
        """From now on refuses calls while the dependency does not answer.

        Args:
            probe: short call that raises unless the dependency answers. It runs in the same threads: while
                each of them is blocked, further calls could not run either.
        """
        self._guard = Guard(self.service, lambda: self._run(probe, PROBE_SECONDS))

    def find_full_disk(self, error: Exception) -> ChorusError | None:
        """Returns the error of a dependency without space, if `error` shows that; None otherwise."""
        return None

    async def run(self, call: Callable[[], T], seconds: float | None = None) -> T:
        """Returns the result of `call`; raises DEPENDENCY_UNAVAILABLE or DISK_FULL that names the service.

        Args:
            seconds: overrides the usual upper bound.
        """
        limit = seconds or self._seconds
        if self._guard is None:
            return await self._run(call, limit)
        await self._guard.settled()
        with self._guard.call(limit):
            return await self._run(call, limit)

    async def _run(self, call: Callable[[], T], limit: float) -> T:
        timer = asyncio.timeout(limit)
        # A timeout of the client itself is one of its faults.
        faults: tuple[type[Exception], ...] = (TimeoutError, *self._faults)
        try:
            async with timer:
                return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except faults as error:
            if timer.expired():
                setting = self._setting if limit == self._seconds else ""
                raise unavailable(self.service, f"no answer within {limit:g} s", setting=setting) from error
            log.warning("call failed", dependency=self.service, error=str(error)[:500])
            if (full := self.find_full_disk(error)) is not None:
                raise full from error
            detail = f"{type(error).__name__}, see the {self.owner}'s log"
            raise unavailable(self.service, detail) from error

    async def close(self) -> None:
        """Waits for running calls and drops queued ones."""
        if self._guard is not None:
            await self._guard.close()
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)


async def retry_until_up(
    client: BlockingClient,
    call: Callable[[], T],
    seconds: float,
    describe_fault: Callable[[BaseException], str | None],
) -> T:
    """Returns the result of `call`, retried with growing pauses: a dependency may start later.

    Stops when its caller is cancelled, which the server does after `startup_seconds`. Raises StartupError for
    a fault that no retry can cure.

    Args:
        describe_fault: returns the message about such a fault, None for any other error.
    """
    pause = 0.2
    while True:
        try:
            return await client.run(call, seconds)
        except ChorusError as error:
            if (fault := describe_fault(error)) is not None:
                raise StartupError(fault) from error
            progress.waiting_for = error.message
            log.warning(
                "dependency not ready",
                dependency=client.service,
                reason=error.message,
                retry_in_seconds=pause,
            )
        await asyncio.sleep(pause)
        pause = min(pause * 2, 5.0)
