"""Counts the queue for the metrics."""

from __future__ import annotations

import time

from services.scheduler.jobs.store import JobStore

# Least time between two counts, in seconds.
_COUNT_SECONDS = 1.0


class QueueCounter:
    """Figures of the queue, at most a second old.

    Attributes:
        queued: number of jobs that wait for their start.
        queued_work: expected seconds of their runs, together.
        oldest_created: time at which the first of them was submitted, in Unix seconds; 0 for an empty queue.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.queued = 0
        self.queued_work = 0.0
        self.oldest_created = 0.0
        self._next_count = 0.0  # monotonic seconds

    async def count(self) -> float | None:
        """Counts the queue, unless it was counted just now.

        Returns the seconds until the next count, None if the latest one is up to date.
        """
        left = self._next_count - time.monotonic()
        if left > 0:
            return left
        state = await self._store.queue_state()
        self.queued, self.queued_work = state.waiting, state.work
        self.oldest_created = state.oldest_created
        self._next_count = time.monotonic() + _COUNT_SECONDS
        return None
