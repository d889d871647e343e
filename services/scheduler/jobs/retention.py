"""Removes ended jobs by age and number, each with its events and its video."""

from __future__ import annotations

import asyncio
import time

from services.runtime.logs import get_logger
from services.scheduler.jobs.passing_faults import PassingFault
from services.scheduler.jobs.store import JobStore
from services.scheduler.jobs.video_store import VideoStore

log = get_logger("retention")

_BATCH = 100
# Pause after a removal, so that a burst of short jobs does not spend its time on removals, in seconds.
_PAUSE_SECONDS = 1.0
# Longest wait for the end of a job: jobs grow old without one. In seconds.
_LONGEST_WAIT_SECONDS = 600.0


class Retention:
    """Removes surplus jobs after the end of a job, and now and then.

    Args:
        keep: number of ended jobs to keep.
        keep_seconds: age up to which ended jobs are kept, in seconds since their end.
    """

    def __init__(self, store: JobStore, videos: VideoStore, *, keep: int, keep_seconds: float) -> None:
        self._store = store
        self._videos = videos
        self._keep = keep
        self._keep_seconds = keep_seconds
        self._ended = asyncio.Event()

    def note_end(self) -> None:
        """Requests a removal after the end of a job."""
        self._ended.set()

    async def run(self) -> None:
        """Runs until it is cancelled. A passing fault is logged; StoreError, which remains, is raised."""
        while True:
            try:
                while await self._remove_surplus():
                    pass
            except (PassingFault, OSError) as fault:
                log.warning("surplus generations not removed", error=str(fault))
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                async with asyncio.timeout(_LONGEST_WAIT_SECONDS):
                    await self._ended.wait()
            except TimeoutError:
                pass
            self._ended.clear()

    async def _remove_surplus(self) -> bool:
        """Removes a batch; returns whether there may be more.

        Files go first: after a crash in between, the row still names its file.
        """
        surplus = await self._store.surplus(self._keep, time.time() - self._keep_seconds, _BATCH)
        if surplus:
            await self._videos.remove(surplus)
            await self._store.forget(surplus)
        return len(surplus) == _BATCH
