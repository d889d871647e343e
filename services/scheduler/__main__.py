"""`python -m services.scheduler`: reads settings from `CHORUS_SCHEDULER_*` and serves until SIGTERM."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path

import grpc.aio
from chorus.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from chorus_rpc.api_keys import InvalidKeys
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.runtime.resources import Resources
from services.runtime.server import run
from services.runtime.settings import load_settings
from services.runtime.watched_file import InvalidFile
from services.scheduler import metrics
from services.scheduler.api.access import Access
from services.scheduler.api.changes import Changes
from services.scheduler.api.generations import Generations
from services.scheduler.api.key_file import KeyFile
from services.scheduler.api.server_info import ServerInfo
from services.scheduler.api.servicer import SchedulerServicer
from services.scheduler.api.view import Views
from services.scheduler.dispatch.admissions import PendingAdmissions
from services.scheduler.dispatch.attempt import AttemptRunner
from services.scheduler.dispatch.denoise_runner import DenoiseRunner
from services.scheduler.dispatch.dispatcher import Dispatcher
from services.scheduler.dispatch.donors_in_flight import DonorsInFlight
from services.scheduler.dispatch.forecast import Forecast
from services.scheduler.dispatch.preparation import Preparation
from services.scheduler.dispatch.start_times import StartTimes
from services.scheduler.dispatch.throughput import Throughput
from services.scheduler.dispatch.unfinished_runs import UnfinishedRuns
from services.scheduler.jobs.notifier import JobNotifier
from services.scheduler.jobs.ordering import Ordering
from services.scheduler.jobs.passing_faults import PassingFault
from services.scheduler.jobs.retention import Retention
from services.scheduler.jobs.sql_store import SqlStore, open_store
from services.scheduler.jobs.store import Job, JobStore, StoreError
from services.scheduler.jobs.video_files import VideoFiles
from services.scheduler.jobs.video_store import VideoStore
from services.scheduler.jobs.video_sweeper import VideoSweeper
from services.scheduler.peers import cache, denoiser, embedder
from services.scheduler.peers.cache import CacheClient
from services.scheduler.peers.connection import PeerConnection, open_connection
from services.scheduler.peers.denoiser import DenoiserClient
from services.scheduler.peers.denoiser_pool import DenoiserPool
from services.scheduler.peers.discovery import Discovery, Resolve, resolve_host
from services.scheduler.peers.embedder import EmbedderClient
from services.scheduler.peers.encoder_registry import EncoderRegistry
from services.scheduler.peers.health import PeerHealth
from services.scheduler.peers.model_registry import ModelRegistry
from services.scheduler.planning.calibration_files import Calibrations, load_calibrations
from services.scheduler.settings import SchedulerSettings
from services.scheduler.webhooks.parts import load_secrets, make_acceptance, make_sender
from services.scheduler.webhooks.secret_file import SigningSecrets
from services.scheduler.webhooks.sender import WebhookSender

log = get_logger("scheduler")

# Upper bounds on the waits for webhooks, and for the outcomes of admissions, during the drain, in seconds.
_DRAIN_SECONDS = 5.0


class Scheduler:
    """Wires the parts of the process.

    Args:
        key_file: API keys in force; None if callers need none.
        secrets: secrets that sign the webhooks; None for none.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        calibrations: Calibrations,
        key_file: KeyFile | None = None,
        resolve: Resolve = resolve_host,
        secrets: SigningSecrets | None = None,
    ) -> None:
        self._resolve = resolve
        self._settings = settings
        self._key_file = key_file
        self._secrets = secrets or SigningSecrets(None)
        self._calibrations = calibrations
        self._notifier = JobNotifier()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dispatcher: Dispatcher | None = None
        self._denoisers: DenoiserPool | None = None
        self._models: ModelRegistry | None = None
        self._admissions: PendingAdmissions | None = None
        self._encoders: EncoderRegistry | None = None
        self._store: SqlStore | None = None
        self._retention: Retention | None = None
        self._unfinished_runs: UnfinishedRuns | None = None
        self._webhooks: WebhookSender | None = None

    async def start(self, resources: Resources, server: grpc.aio.Server) -> None:
        """Serves as soon as the database is open, even while other services are unavailable."""
        settings = self._settings
        store = await open_store(
            settings.database,
            self._notifier.notify,
            password=settings.database_password.get_secret_value(),
            on_end=self._handle_end_of_job,
            lease_seconds=settings.lease_seconds,
            ordering=Ordering(settings.concurrency, settings.class_seconds),
        )
        resources.push_async_callback(store.close)
        self._store = store
        videos = make_video_store(settings)
        await videos.open()
        resources.push_async_callback(videos.close)
        resources.push_async_callback(self._end_tasks)

        def connect(name: str, service: str, target: str, key: str = "") -> PeerConnection:
            return open_connection(
                name, service, target, settings, resources, self._handle_health_change, key
            )

        def connect_denoiser(
            address: str, own: Resources, on_change: Callable[[PeerHealth], None]
        ) -> DenoiserClient:
            connection = open_connection("denoiser", denoiser.SERVICE, address, settings, own, on_change)
            return DenoiserClient(connection)

        embedder_client = EmbedderClient(
            connect("embedder", embedder.SERVICE, settings.embedder_target),
            embed_seconds=settings.embed_seconds,
            align_seconds=settings.align_seconds,
        )
        denoisers = DenoiserPool(
            Discovery(settings.denoiser_target, self._resolve),
            connect_denoiser,
            slots=settings.concurrency,
            interval=settings.resolve_seconds,
            max_pause=settings.retry_seconds,
            on_change=self._handle_denoisers_change,
            ended_task=resources.ended_task,
        )
        self._denoisers = denoisers
        resources.push_async_callback(denoisers.close)
        metrics.observe_denoisers(denoisers)
        cache_connection = connect(
            "cache", cache.SERVICE, settings.cache_target, settings.cache_key.get_secret_value()
        )
        cache_client = CacheClient(
            cache_connection,
            lookup_seconds=settings.lookup_seconds,
            donor_limit=settings.donor_limit,
        )
        models = ModelRegistry(store, denoisers)
        self._models = models
        await models.load()
        encoders = EncoderRegistry(embedder_client)
        self._encoders = encoders
        throughput = Throughput()
        admissions = PendingAdmissions(settings.admission_seconds)
        self._admissions = admissions
        preparation = Preparation(
            store,
            models,
            embedder_client,
            encoders,
            cache_client,
            throughput,
            admissions,
            self._calibrations,
            compare_prompts=settings.compare_prompts,
        )
        unfinished_runs = UnfinishedRuns(settings.resume_bytes, settings.max_message_bytes)
        self._unfinished_runs = unfinished_runs
        denoise_runner = DenoiseRunner(
            store, videos, throughput, admissions, unfinished_runs, max_video_bytes=settings.max_video_bytes
        )
        in_flight = DonorsInFlight(preparation, throughput) if settings.wait_for_donors else None
        attempt_runner = AttemptRunner(store, preparation, denoise_runner, unfinished_runs, in_flight)
        required_peers = (embedder_client.health, denoisers)
        forecast = Forecast(store, preparation, throughput, required_peers)
        dispatcher = Dispatcher(attempt_runner, store, videos, forecast, required_peers, denoisers, settings)
        self._dispatcher = dispatcher
        metrics.observe_queue(dispatcher)
        resources.start_task(denoisers.run(), "denoisers")
        await dispatcher.recover()
        resources.start_task(dispatcher.run(), "dispatcher")
        resources.start_task(forecast.run(dispatcher.wake), "forecast")
        retention = Retention(
            store,
            videos,
            keep=settings.keep_generations,
            keep_seconds=settings.keep_days * 86_400,
        )
        self._retention = retention
        resources.start_task(retention.run(), "retention")
        resources.start_task(VideoSweeper(store, videos).run(), "video sweeper")
        resources.start_task(_keep_lease(store, dispatcher, settings.lease_seconds), "lease")
        resources.start_task(store.listen(self._handle_foreign_change, self._handle_gap), "notifications")
        self._start_webhooks(store, resources)
        start_times = StartTimes(store, throughput, denoisers, required_peers, settings.tenant_concurrency)
        generations = Generations(
            store,
            videos,
            models,
            encoders,
            throughput,
            preparation,
            dispatcher,
            self._notifier,
            make_acceptance(settings, self._secrets, store),
            start_times,
            Changes(store, dispatcher, start_times, metrics.record_report),
            Views(store, start_times),
            settings,
        )
        access = Access(self._key_file, settings.tenant)
        if self._key_file is not None:
            resources.start_task(self._key_file.watch(), "api keys")
        peers = (embedder_client.health, cache_connection.health)
        server_info = ServerInfo(peers, denoisers, confidential=access.has_keys)
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(
            SchedulerServicer(generations, access, server_info), server
        )

    def _start_webhooks(self, store: SqlStore, resources: Resources) -> None:
        sender = make_sender(
            self._settings,
            self._secrets,
            store,
            resources,
            metrics.record_webhook_attempt,
            metrics.record_webhook,
        )
        self._webhooks = sender
        metrics.observe_webhooks(sender)
        resources.start_task(sender.run(), "webhooks")
        if self._settings.webhook_secrets:
            resources.start_task(self._secrets.watch(), "webhook secrets")

    async def drain(self) -> None:
        """Requeues running jobs, which continue after the restart, and ends the calls of watchers."""
        if self._dispatcher is not None:
            await self._dispatcher.stop()
        if self._webhooks is not None:
            await self._webhooks.stop(_DRAIN_SECONDS)
        if self._store is not None:
            with suppress(PassingFault):
                await self._store.end_lease()
        if self._admissions is not None:
            await self._admissions.drain(_DRAIN_SECONDS)
        self._notifier.close()

    def _handle_end_of_job(self, job: Job) -> None:
        metrics.record_end(job)
        if self._unfinished_runs is not None:
            self._unfinished_runs.discard(job.job_id)
        if self._retention is not None:
            self._retention.note_end()
        if self._webhooks is not None and job.generation.spec.HasField("webhook"):
            self._webhooks.wake()

    def _handle_foreign_change(self, job_id: str) -> None:
        """Follows a change that another scheduler made to a job."""
        self._notifier.notify(job_id)
        if self._dispatcher is not None:
            self._spawn(self._dispatcher.follow_change(job_id))

    def _handle_gap(self) -> None:
        """Looks at everything again: changes of other schedulers may have been missed."""
        self._notifier.notify_all()
        if self._dispatcher is not None:
            self._spawn(self._dispatcher.follow_all_changes())

    def _handle_health_change(self, peer: PeerHealth) -> None:
        if peer.name == "embedder" and peer.serving:
            self._spawn(self._refresh_encoders())
        if self._dispatcher is not None:
            self._dispatcher.handle_health_change(peer)

    def _handle_denoisers_change(self, gained: bool) -> None:
        """Follows a change of the denoisers.

        Args:
            gained: whether one is ready that was not.
        """
        if self._denoisers is None or self._store is None or self._dispatcher is None:
            return
        self._store.set_slots(self._denoisers.slots)
        if gained:
            self._dispatcher.handle_health_change(self._denoisers)
            self._spawn(self._follow_models())
        else:
            self._dispatcher.wake()

    async def _follow_models(self) -> None:
        """Saves the models, and warns of those that cannot be used: a restarted denoiser may serve others."""
        if self._models is None:
            return
        try:
            await self._models.save()
        except Exception:
            log.exception("models not saved")
        if self._encoders is not None:
            self._encoders.warn_of_faults(self._models.known())
        self._calibrations.warn_of_faults(self._models.known())

    async def _refresh_encoders(self) -> None:
        if self._encoders is None or self._models is None:
            return
        try:
            await self._encoders.refresh()
        except ChorusError as error:
            log.warning("encoders not refreshed", error=error.message)
        self._encoders.warn_of_faults(self._models.known())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._handle_end)

    def _handle_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (cause := task.exception()) is not None:
            log.error("background task failed", task=task.get_name(), exc_info=cause)

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def make_video_store(settings: SchedulerSettings) -> VideoStore:
    if not settings.video_store:
        return VideoFiles(settings.video_dir)
    # The client of S3 takes memory, and a part of the start, only where it is used.
    from services.scheduler.jobs.video_bucket import VideoBucket

    return VideoBucket(settings)


async def _keep_lease(store: JobStore, dispatcher: Dispatcher, seconds: float) -> None:
    """Extends the lease of this scheduler, and looks for jobs whose owner has none any more, until cancelled.

    Args:
        seconds: length of a lease, during which it is extended four times.
    """
    while True:
        await asyncio.sleep(seconds / 4)
        try:
            await store.keep_lease()
        except PassingFault as fault:
            log.warning("lease not extended", error=fault.message)
        dispatcher.wake()


def main() -> None:
    settings = load_settings(SchedulerSettings, sys.argv[1:])
    try:
        calibrations = load_calibrations(settings.calibrations)
    except ValueError as error:
        print(f"CHORUS_SCHEDULER_CALIBRATIONS: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        key_file = KeyFile(Path(settings.api_keys)) if settings.api_keys else None
    except InvalidKeys as error:
        print(f"CHORUS_SCHEDULER_API_KEYS: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        secrets = load_secrets(settings)
    except InvalidFile as error:
        print(f"CHORUS_SCHEDULER_WEBHOOK_SECRETS: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    scheduler = Scheduler(settings, calibrations, key_file, secrets=secrets)
    try:
        run(
            "scheduler",
            scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name,
            settings,
            scheduler.start,
            drain=scheduler.drain,
            credentials=None if settings.tls is None else settings.tls.make_credentials(),
            health_port=settings.health_port,
            public=True,
        )
    except (StoreError, PassingFault) as error:
        print(f"scheduler: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
