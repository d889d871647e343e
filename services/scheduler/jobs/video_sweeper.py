"""Removes videos without a job, which crashes and lost leases leave behind."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.scheduler.jobs.store import JobStore
from services.scheduler.jobs.video_store import VideoStore

log = get_logger("video_sweeper")

# Pause between two sweeps, in seconds.
_PAUSE_SECONDS: Final = 3_600.0
# Age below which a video without a job is kept, in seconds: another scheduler may have just written it.
_GRACE_SECONDS: Final = 86_400.0


class VideoSweeper:
    """Sweeps a video store that belongs to one job database.

    Each database marks the store that it uses. A store with the mark of another one, or with videos of
    unknown jobs from before the mark, may hold videos of other deployments: there nothing is removed.
    """

    def __init__(self, store: JobStore, videos: VideoStore) -> None:
        self._store = store
        self._videos = videos

    async def run(self) -> None:
        """Runs until it is cancelled. A passing fault is logged; StoreError, which remains, is raised."""
        while True:
            try:
                await self.sweep(time.time() - _GRACE_SECONDS)
            except (ChorusError, OSError) as fault:
                log.warning("videos without a generation not removed", error=str(fault))
            await asyncio.sleep(_PAUSE_SECONDS)

    async def sweep(self, before: float) -> int:
        """Removes videos of unknown jobs that were written before a time, in Unix seconds.

        Returns the number of these jobs. A job exists before its video is written, so that none is unknown
        whose video may still be needed.
        """
        own = await self._store.database_id()
        marks = await self._videos.read_marks()
        owned = marks == {own: True}
        unknown = removed = 0
        async for page in self._videos.list_jobs():
            known = await self._store.find_known([job.job_id for job in page])
            lost = [job for job in page if job.job_id not in known]
            unknown += len(lost)
            if owned and (ids := [job.job_id for job in lost if job.modified < before]):
                await self._videos.remove(ids)
                removed += len(ids)
        if not owned:
            # With other marks, this database must not find the store its own when these are removed.
            owns = unknown == 0 and set(marks) <= {own}
            if marks.get(own) is not owns:
                await self._videos.write_mark(own, owned=owns)
            if unknown:
                log.warning(
                    "videos without a generation kept: the store is not owned by this job database alone",
                    generations=unknown,
                    other_databases=len(marks.keys() - {own}),
                )
        elif removed:
            log.info("videos without a generation removed", generations=removed)
        return removed
