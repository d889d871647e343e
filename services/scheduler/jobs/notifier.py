"""Wakes the watchers of a job when it changes.

Watchers read the changes from the store, so that a slow watcher occupies no memory.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from chorus_rpc import errors
from chorus_rpc.errors import ChorusError


class JobNotifier:
    """Wakes watchers within one event loop."""

    def __init__(self) -> None:
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._closed = False

    @contextmanager
    def subscribe(self, job_id: str) -> Iterator[asyncio.Event]:
        """Yields an event that is set at every change of the job until the block ends."""
        changed = asyncio.Event()
        self._watchers[job_id].add(changed)
        try:
            yield changed
        finally:
            self._watchers[job_id].discard(changed)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    def notify(self, job_id: str) -> None:
        """Wakes every watcher of a job."""
        for changed in self._watchers.get(job_id, ()):
            changed.set()

    def notify_all(self) -> None:
        """Wakes every watcher, after changes that were not notified one by one."""
        for watchers in self._watchers.values():
            for changed in watchers:
                changed.set()

    def close(self) -> None:
        """Ends every subscription: watchers reconnect to another process and resume by sequence number."""
        self._closed = True
        self.notify_all()

    def raise_if_closed(self) -> None:
        if self._closed:
            raise ChorusError(
                errors.SHUTTING_DOWN,
                "the scheduler is shutting down; watch again after the last sequence number",
                metadata={"service": "scheduler"},
                retry_after=1.0,
            )
