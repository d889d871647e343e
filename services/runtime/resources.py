"""Resources of a service process, and the background tasks without which it must not serve."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any

from services.runtime.logs import get_logger

log = get_logger("resources")


class EssentialTaskEnded(Exception):
    """End of an essential task while the process served; the log has its cause."""


class Resources(AsyncExitStack):
    """Closes what a process has opened, in reverse order, and owns its essential tasks.

    Created in a running event loop.

    Args:
        ended_task: that of longer-lived resources, if these are closed before the process ends.

    Attributes:
        ended_task: completed with the name of the first essential task that ended too early.
    """

    def __init__(self, ended_task: asyncio.Future[str] | None = None) -> None:
        super().__init__()
        self.ended_task: asyncio.Future[str] = ended_task or asyncio.get_running_loop().create_future()

    def start_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Starts a task that must run until the resources close, which cancels it.

        If it ends earlier, in whatever way, `services.runtime.server` ends the process.
        """
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._handle_end)
        self.push_async_callback(self._cancel, task)

    def _handle_end(self, task: asyncio.Task[None]) -> None:
        cause = None if task.cancelled() else task.exception()
        log.critical("essential task ended; this process ends", task=task.get_name(), exc_info=cause)
        if not self.ended_task.done():
            self.ended_task.set_result(task.get_name())

    async def _cancel(self, task: asyncio.Task[None]) -> None:
        task.remove_done_callback(self._handle_end)
        task.cancel()
        await asyncio.wait((task,))
