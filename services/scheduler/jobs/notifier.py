"""Wakes those who wait for a job to change.

What changed they read from the store, so that a slow watcher holds no memory.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from chorus_rpc import errors
from chorus_rpc.errors import ChorusError


class JobNotifier:
    """Lives in one event loop."""

    def __init__(self) -> None:
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._closed = False

    @contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set at every change of the job while the block lasts."""
        changed = asyncio.Event()
        self._watchers[job_id].add(changed)
        try:
            yield changed
        finally:
            self._watchers[job_id].discard(changed)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    def tell(self, job_id: str) -> None:
        for changed in self._watchers.get(job_id, ()):
            changed.set()

    def close(self) -> None:
        """Sends every watcher away; they come back to another process and go on by sequence number."""
        self._closed = True
        for watchers in self._watchers.values():
            for changed in watchers:
                changed.set()

    def raise_if_closed(self) -> None:
        if self._closed:
            raise ChorusError(
                errors.SHUTTING_DOWN,
                "the scheduler is shutting down; watch again after the last sequence number",
                metadata={"service": "scheduler"},
                retry_after=1.0,
            )
