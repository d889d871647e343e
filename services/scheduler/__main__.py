"""`python -m services.scheduler`: settings from `CHORUS_SCHEDULER_*`, then serve until SIGTERM."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack

import grpc.aio
from chorus.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.runtime.server import run
from services.runtime.settings import load_settings
from services.scheduler.api.generations import Generations
from services.scheduler.api.servicer import SchedulerServicer
from services.scheduler.dispatch.dispatcher import Dispatcher
from services.scheduler.dispatch.rerank import AlignmentReranker, ScoreReranker
from services.scheduler.dispatch.throughput import Throughput
from services.scheduler.dispatch.tools import Tools
from services.scheduler.jobs.notifier import JobNotifier
from services.scheduler.jobs.sqlite import open_store
from services.scheduler.jobs.store import StoreError
from services.scheduler.jobs.video_files import Videos
from services.scheduler.peers.downstream import open_downstream
from services.scheduler.peers.health import Dependency
from services.scheduler.peers.model_registry import ModelRegistry
from services.scheduler.settings import SchedulerSettings

log = get_logger("scheduler")


class Scheduler:
    """The parts of the process, wired."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._changes = JobNotifier()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dispatcher: Dispatcher | None = None
        self._catalogue: ModelRegistry | None = None

    async def start(self, resources: AsyncExitStack, server: grpc.aio.Server) -> None:
        """Ready as soon as the database is open, whichever other services are there."""
        settings = self._settings
        store = await open_store(settings.database, self._changes.tell)
        resources.push_async_callback(store.close)
        videos = Videos(settings.video_dir)
        await videos.open()
        resources.push_async_callback(self._end_tasks)
        downstream = open_downstream(settings, resources, self._service_changed)
        self._catalogue = ModelRegistry(store, downstream.denoiser, downstream.metadata)
        await self._catalogue.load()
        reranker = AlignmentReranker(downstream) if settings.reranker == "alignment" else ScoreReranker()
        tools = Tools(store, videos, self._catalogue, downstream, Throughput(), reranker, settings)
        self._dispatcher = Dispatcher(tools)
        await self._dispatcher.recover()
        self._spawn(self._dispatcher.run())
        generations = Generations(tools, self._dispatcher, self._changes)
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(SchedulerServicer(generations), server)

    async def drain(self) -> None:
        """Running jobs go back into the queue, to continue after the restart; watchers are sent away."""
        if self._dispatcher is not None:
            await self._dispatcher.stop()
        self._changes.close()

    def _service_changed(self, service: Dependency) -> None:
        if service.name == "denoiser" and service.serving:
            self._spawn(self._refresh(service))
        elif self._dispatcher is not None:
            self._dispatcher.service_changed(service)

    async def _refresh(self, denoiser: Dependency) -> None:
        """It may have come back with other weights: jobs go on when that is known."""
        if self._catalogue is None:
            return
        try:
            await self._catalogue.refresh()
        except ChorusError as error:
            log.warning("the denoiser did not say which models it serves", error=error.message)
        except Exception:
            log.exception("the models could not be remembered")
        if self._dispatcher is not None:
            self._dispatcher.service_changed(denoiser)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def main() -> None:
    settings = load_settings(SchedulerSettings, sys.argv[1:])
    scheduler = Scheduler(settings)
    try:
        run(
            "scheduler",
            scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name,
            settings,
            scheduler.start,
            drain=scheduler.drain,
        )
    except StoreError as error:
        print(f"scheduler: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
