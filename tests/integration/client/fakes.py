"""Scripted scheduler and cache behind real sockets, on the test's event loop or in a thread."""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import grpc.aio
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.common.v1 import errors_pb2, latents_pb2, plan_pb2, video_pb2
from chorus.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from chorus_rpc import errors, tenancy
from chorus_rpc.chunks import chunks
from chorus_rpc.errors import ChorusError, Violations
from chorus_rpc.limits import MAX_REPORT_COMMENT_BYTES

from services.runtime.interceptors import Gate, ServiceInterceptor

VIDEO = b"\x00\x00\x00\x18ftypisom" + bytes(range(256)) * 9_000  # more than two chunks
CHUNK = 1 << 18
THUMBNAIL = b"\xff\xd8 a picture"
PREVIEW = b"\xff\xd8 a step"  # of a computed step, if the request asks for it
STEPS = 4


class FakeScheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Runs each generation to its end immediately, with four exceptions.

    "fail …" fails; "slow …" stops after its first step until it is cancelled; "warn …" carries a warning; of
    "second fails …" the second output fails.

    Attributes:
        drops: numbers of messages after which a stream breaks, one number for each stream.
        video_drops: numbers of chunks after which a download breaks, one number for each download.
        ranges: offset and length of each download.
        urls: whether videos have URLs.
        metadata: metadata of each submission.
        delay: delay of the response to a submission, in seconds.
    """

    def __init__(self) -> None:
        self.generations: dict[str, scheduler_pb2.Generation] = {}
        self.events: dict[str, list[scheduler_pb2.GenerationEvent]] = {}
        self.requests: list[scheduler_pb2.SubmitGenerationRequest] = []
        self.lists: list[scheduler_pb2.ListGenerationsRequest] = []
        self.watched_after: list[int] = []
        self.drops: list[int] = []
        self.video_drops: list[int] = []
        self.ranges: list[tuple[int, int]] = []
        self.urls = True
        self.metadata: list[dict[str, Any]] = []
        self.delay = 0.0
        self.changed = asyncio.Condition()
        self.damage_video = False
        self.watching = threading.Event()

    async def SubmitGeneration(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        await asyncio.sleep(self.delay)
        violations = Violations()
        violations.require(
            bool(request.spec.prompt.strip()), "spec.prompt", "must hold 1 to 2,000 characters"
        )
        violations.require(request.spec.shape.frames <= 64, "spec.shape.frames", "must be 1 to 64")
        violations.raise_if_any()
        if request.spec.model_id == "nowhere":
            raise errors.unavailable("denoiser", "connection refused")
        known = [each for each in self.generations.values() if each.request_id == request.request_id]
        if known:
            if known[0].spec.prompt != request.spec.prompt:
                raise ChorusError(errors.REQUEST_ID_REUSED, "this request_id had another body")
            return scheduler_pb2.SubmitGenerationResponse(generation=known[0], generations=known)
        outputs = []
        for index in range(1, (request.outputs or 1) + 1):
            identifier = f"gen-{len(self.generations) + 1}"
            generation = scheduler_pb2.Generation(
                generation_id=identifier,
                request_id=request.request_id,
                spec=request.spec,
                state=scheduler_pb2.GENERATION_STATE_RUNNING,
                output_index=index,
                output_count=request.outputs or 1,
            )
            generation.create_time.GetCurrentTime()
            self.generations[identifier] = generation
            self.events[identifier] = []
            await self._play(generation)
            outputs.append(generation)
        return scheduler_pb2.SubmitGenerationResponse(
            generation=outputs[0], created=True, generations=outputs
        )

    async def _play(self, generation: scheduler_pb2.Generation) -> None:
        donor = plan_pb2.DonorRef(
            entry_id="e" * 64, score=0.91, prompt="a [red] circle", generation_id="gen-0"
        )
        plan = plan_pb2.Plan(total_steps=STEPS, reuse_steps=2, donor=donor)
        plan.reasons.add(code=plan_pb2.PLAN_REASON_CODE_SCORE_TABLE, text="score 0.910 allows 2 steps")
        explicit = generation.spec.explicit_reuse
        if generation.spec.HasField("explicit_reuse"):
            plan.reuse_steps, plan.region_end = explicit.reuse_steps, explicit.region_end
            plan.region.CopyFrom(explicit.region)
            plan.amplification.CopyFrom(explicit.amplification)
            plan.edit, plan.predicted_drift_points = "colour", 1.5
            plan.renoised, plan.draft_step = explicit.renoised, explicit.draft_step
        prompt = generation.spec.prompt
        if prompt.startswith("second fails") and generation.output_index == 2:
            prompt = f"fail: {prompt}"
        if prompt.startswith("repeat"):
            plan.reuse_steps = STEPS
        generation.plan.CopyFrom(plan)
        await self.emit(generation, queued=scheduler_pb2.QueuedEvent(queue_position=1))
        await self.emit(generation, planned=scheduler_pb2.PlannedEvent(plan=plan))
        await self.emit(
            generation,
            started=scheduler_pb2.StartedEvent(
                reuse_steps=plan.reuse_steps, total_steps=STEPS, donor=donor, attempt=1
            ),
        )
        for index in range(plan.reuse_steps + (not plan.draft_step), STEPS + 1):
            step = scheduler_pb2.StepCompletedEvent(total_steps=STEPS, seconds=0.1, eta_seconds=0.5)
            step.draft = plan.draft_step > 0 and index == plan.reuse_steps
            step.step.index = index
            if index <= plan.region_end:
                step.computed_share, step.active_tokens = 0.375, b"\x07"
                step.token_grid.extend((1, 2, 4))
            if "without a GPU" in prompt:
                step.backend, step.fallback = "torch", "needs a CUDA device"
            if generation.spec.step_previews:
                step.preview = PREVIEW
            await self.emit(generation, step_completed=step)
            if prompt.startswith("slow"):
                return
        if prompt.startswith("warn"):
            warning = errors_pb2.JobError(
                reason=errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, message="the cache did not answer"
            )
            generation.warnings.append(warning)
            await self.emit(generation, warning=scheduler_pb2.WarningEvent(warning=warning))
        if prompt.startswith("fail"):
            fault = errors_pb2.JobError(
                reason=errors_pb2.ERROR_REASON_INTERNAL, message="the model produced NaN at step 3"
            )
            generation.state = scheduler_pb2.GENERATION_STATE_FAILED
            generation.error.CopyFrom(fault)
            await self.emit(generation, failed=scheduler_pb2.FailedEvent(error=fault))
            return
        generation.state = scheduler_pb2.GENERATION_STATE_SUCCEEDED
        generation.steps_run = STEPS - plan.reuse_steps
        generation.donor.CopyFrom(donor)
        generation.video.CopyFrom(self._video_info())
        generation.timings.total_seconds = 1.5
        generation.timings.running_seconds = 1.25
        generation.timings.waiting_seconds = 0.5
        generation.seconds_saved = 0.7
        generation.end_time.GetCurrentTime()
        generation.start_time.GetCurrentTime()
        await self.emit(
            generation,
            succeeded=scheduler_pb2.SucceededEvent(
                video=generation.video, steps_run=2, timings=generation.timings, seconds_saved=0.7
            ),
        )

    async def emit(self, generation: scheduler_pb2.Generation, **event: Any) -> None:
        events = self.events[generation.generation_id]
        events.append(scheduler_pb2.GenerationEvent(sequence=len(events) + 1, **event))
        generation.last_sequence = len(events)
        async with self.changed:
            self.changed.notify_all()

    def _find(self, identifier: str) -> scheduler_pb2.Generation:
        if identifier not in self.generations:
            raise errors.not_found("generation", identifier)
        return self.generations[identifier]

    async def GetGeneration(self, request: Any, context: Any) -> Any:
        return scheduler_pb2.GetGenerationResponse(generation=self._find(request.generation_id))

    async def WatchGeneration(self, request: Any, context: Any) -> AsyncIterator[Any]:
        generation = self._find(request.generation_id)
        self.watched_after.append(request.after_sequence)
        sent, position = 0, request.after_sequence
        drop = self.drops.pop(0) if self.drops else None
        while True:
            for event in self.events[generation.generation_id][position:]:
                if sent == drop:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream broke")
                position = event.sequence
                sent += 1
                yield scheduler_pb2.WatchGenerationResponse(event=event)
            if generation.state not in (
                scheduler_pb2.GENERATION_STATE_RUNNING,
                scheduler_pb2.GENERATION_STATE_QUEUED,
            ):
                return
            self.watching.set()
            async with self.changed:
                await self.changed.wait()

    async def CancelGeneration(self, request: Any, context: Any) -> Any:
        generation = self._find(request.generation_id)
        if generation.state == scheduler_pb2.GENERATION_STATE_RUNNING:
            generation.state = scheduler_pb2.GENERATION_STATE_CANCELLED
            await self.emit(generation, cancelled=scheduler_pb2.CancelledEvent())
        return scheduler_pb2.CancelGenerationResponse(generation=generation)

    async def ListGenerations(self, request: Any, context: Any) -> Any:
        self.lists.append(request)
        if request.after_generation_id:
            self._find(request.after_generation_id)
        everything = list(self.generations.values())
        matching = [
            generation
            for generation in (everything if request.oldest_first else reversed(everything))
            if request.state in (0, generation.state)
            and request.labels.items() <= dict(generation.spec.labels).items()
            and request.model_id in ("", generation.spec.model_id)
            and request.decision in (0, find_decision(generation))
            and request.edit_kind in ("", generation.plan.edit)
            and (not request.reported or generation.HasField("report"))
            and request.donor_generation_id in ("", generation.donor.generation_id)
        ]
        ids = [generation.generation_id for generation in matching]
        start = int(request.page_token or 0)
        if request.after_generation_id:
            start = ids.index(request.after_generation_id) + 1
        size = min(request.page_size, 2)  # small, so that clients must request several pages
        page = matching[start : start + size]
        after = start + len(page)
        token = str(after) if after < len(matching) else ""
        return scheduler_pb2.ListGenerationsResponse(generations=page, next_page_token=token)

    async def ReportGeneration(self, request: Any, context: Any) -> Any:
        generation = self._find(request.generation_id)
        if generation.state != scheduler_pb2.GENERATION_STATE_SUCCEEDED:
            raise ChorusError(errors.WRONG_STATE, "it has no video")
        if len(request.comment) > MAX_REPORT_COMMENT_BYTES:
            raise errors.invalid("comment", "must have at most 1,000 bytes of UTF-8")
        report = scheduler_pb2.ProblemReport(problem=request.problem, comment=request.comment)
        report.report_time.GetCurrentTime()
        generation.report.CopyFrom(report)
        return scheduler_pb2.ReportGenerationResponse(generation=generation)

    async def WithdrawReport(self, request: Any, context: Any) -> Any:
        generation = self._find(request.generation_id)
        generation.ClearField("report")
        return scheduler_pb2.WithdrawReportResponse(generation=generation)

    async def ChangePriority(self, request: Any, context: Any) -> Any:
        generation = self._find(request.generation_id)
        if generation.state not in (
            scheduler_pb2.GENERATION_STATE_QUEUED,
            scheduler_pb2.GENERATION_STATE_WAITING,
        ):
            raise ChorusError(errors.WRONG_STATE, "it has left the queue")
        generation.spec.priority = request.priority
        return scheduler_pb2.ChangePriorityResponse(generation=generation)

    def _video_info(self) -> video_pb2.VideoInfo:
        digest = hashlib.sha256(VIDEO + (b"x" if self.damage_video else b"")).hexdigest()
        return video_pb2.VideoInfo(
            media_type="video/mp4",
            size_bytes=len(VIDEO),
            digest=digest,
            frames=8,
            height=256,
            width=256,
            frames_per_second=8,
        )

    async def DeleteGeneration(self, request: Any, context: Any) -> Any:
        if self.generations.pop(request.generation_id, None) is None:
            raise errors.not_found("generation", request.generation_id)
        return scheduler_pb2.DeleteGenerationResponse()

    async def ListModels(self, request: Any, context: Any) -> Any:
        model = scheduler_pb2.Model(
            model_id="small",
            frames=video_pb2.Bound(min=8, max=64, multiple=8),
            height=video_pb2.Bound(min=32, max=64, multiple=32),
            width=video_pb2.Bound(min=32, max=64, multiple=32),
            steps=video_pb2.Bound(min=1, max=50, multiple=1),
            default_shape=video_pb2.VideoShape(frames=16, height=64, width=64),
            default_schedule=latents_pb2.Schedule(sigmas=[1.0, 0.9, 0.8, 0.5, 0.0]),
            max_text_tokens=64,
            seconds_per_step=0.25,
            frames_per_second=8,
        )
        other = scheduler_pb2.Model()
        other.CopyFrom(model)
        other.model_id = "large"
        return scheduler_pb2.ListModelsResponse(models=[model, other])

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        response = scheduler_pb2.GetServerInfoResponse()
        serving, silent = scheduler_pb2.SERVICE_STATE_SERVING, scheduler_pb2.SERVICE_STATE_NOT_SERVING
        response.services.add(name="scheduler", state=serving, version="0.9")
        response.services.add(name="cache", state=serving, address="cache:7402", version="0.8")
        response.services.add(
            name="denoiser", state=silent, address="gpu-1:7403", detail="connection refused"
        )
        response.services.add(name="denoiser", address="gpu-2:7403")
        return response

    async def PreviewPlan(self, request: Any, context: Any) -> Any:
        donor = plan_pb2.DonorRef(entry_id="e" * 64, score=0.91, prompt="a red circle")
        plan = plan_pb2.Plan(total_steps=STEPS, reuse_steps=2, donor=donor, predicted_seconds_saved=0.5)
        plan.reasons.add(code=plan_pb2.PLAN_REASON_CODE_SCORE_TABLE, text="score 0.910 allows 2 steps")
        return scheduler_pb2.PreviewPlanResponse(
            spec=request.spec, plan=plan, run_seconds=0.75, queue_seconds=3.0
        )

    async def GetVideo(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._find(request.generation_id)
        self.ranges.append((request.offset, request.length))
        drop = self.video_drops.pop(0) if self.video_drops else None
        yield scheduler_pb2.GetVideoResponse(header=self._video_info())
        end = request.offset + request.length if request.length else None
        for sent, chunk in enumerate(chunks(VIDEO[request.offset : end], CHUNK)):
            if sent == drop:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream broke")
            yield scheduler_pb2.GetVideoResponse(chunk=chunk)

    async def GetThumbnail(self, request: Any, context: Any) -> Any:
        if self._find(request.generation_id).spec.prompt.startswith("warn"):
            raise ChorusError(errors.NOT_FOUND, "the video has no thumbnail")
        info = video_pb2.ImageInfo(media_type="image/jpeg", height=180, width=320)
        return scheduler_pb2.GetThumbnailResponse(info=info, data=THUMBNAIL)

    async def GetVideoUrl(self, request: Any, context: Any) -> Any:
        self._find(request.generation_id)
        if not self.urls:
            raise ChorusError(errors.WRONG_STATE, "this server stores videos in a directory")
        response = scheduler_pb2.GetVideoUrlResponse(url=f"http://store/{request.generation_id}?signature")
        seconds = request.lifetime.seconds if request.HasField("lifetime") else 3_600
        response.expire_time.FromSeconds(1_800_000_000 + seconds)
        return response


def find_decision(generation: scheduler_pb2.Generation) -> int:
    """Returns how a generation used the cache, as its plan says."""
    plan = generation.plan
    if not plan.total_steps:
        return scheduler_pb2.CACHE_DECISION_UNSPECIFIED
    if not plan.reuse_steps:
        return scheduler_pb2.CACHE_DECISION_MISS
    exact = plan.reuse_steps == plan.total_steps
    return scheduler_pb2.CACHE_DECISION_EXACT if exact else scheduler_pb2.CACHE_DECISION_HIT


def make_details(entry_id: str) -> cache_pb2.EntryDetails:
    """Returns an entry of the cache with latents of two steps and side data."""
    details = cache_pb2.EntryDetails(
        model_id="shapes", size_bytes=3 << 20, hits=2, seconds_saved=1.5, pinned=entry_id.startswith("ab")
    )
    details.entry.entry_id, details.entry.prompt, details.entry.seed = entry_id, "a red circle", 7
    details.entry.create_time.GetCurrentTime()
    for step in (1, 4):
        details.entry.blobs.add().step.index = step
    details.entry.blobs.add().kind = latents_pb2.BLOB_KIND_SIDE_DATA
    return details


class FakeCache(cache_pb2_grpc.CacheServiceServicer):
    """Records the requests that it answers."""

    def __init__(self) -> None:
        self.purges: list[cache_pb2.PurgeRequest] = []
        self.lists: list[cache_pb2.ListEntriesRequest] = []
        self.verifications: list[cache_pb2.VerifyEntriesRequest] = []
        self.entries = [make_details("a" * 64), make_details("ab" * 32)]
        self.adoptions: list[cache_pb2.AdoptRequest] = []
        self.tenants: list[str] = []
        self.stats: list[cache_pb2.StatsRequest] = []
        self.maps: list[cache_pb2.MapEntriesRequest] = []
        self.map_fault: ChorusError | None = None
        self.evictions: dict[str, int] = {}

    async def Lookup(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def Find(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def Fetch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise NotImplementedError

    async def Admit(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def Stats(self, request: Any, context: Any) -> Any:
        self.tenants.append(tenancy.read_tenant(context.invocation_metadata()))
        self.stats.append(request)
        response = cache_pb2.StatsResponse(
            entries=7,
            bytes=3 << 20,
            lookups=20,
            lookups_with_donor=9,
            index_kind="milvus-lite",
            blobs_kind="directory",
            store_ownership=cache_pb2.STORE_OWNERSHIP_FOREIGN,
            index_id="1" * 32,
            store_owners=["2" * 32],
            rejected_admissions=[
                cache_pb2.RejectedAdmissions(reason=errors.INVALID_FIELD, count=2),
                cache_pb2.RejectedAdmissions(reason=errors.DISK_FULL, count=1),
            ],
            failed_sweeps=4,
            evictions=[
                cache_pb2.Evictions(reason=reason, count=count) for reason, count in self.evictions.items()
            ],
        )
        response.start_time.GetCurrentTime()
        if request.growth_points:
            for number in range(6):
                point = response.growth.add(entries=number + number // 4, bytes=number << 19)
                point.time.FromSeconds(1_800_000_000 + number * 3_600)
            response.growth_step.FromSeconds(3_600)
        return response

    async def MapEntries(self, request: Any, context: Any) -> Any:
        self.maps.append(request)
        if self.map_fault is not None:
            raise self.map_fault
        response = cache_pb2.MapEntriesResponse(left_out=99_800, explained_share=0.42)
        for number, details in enumerate(self.entries[: request.limit or 200]):
            response.entries.add(
                entry_id=details.entry.entry_id,
                prompt=details.entry.prompt[:200],
                generation_id=details.entry.generation_id,
                hits=details.hits,
                seconds_saved=details.seconds_saved,
                x=math.cos(2.4 * number) * math.sqrt((number + 1) / len(self.entries)),
                y=0.6 * math.sin(2.4 * number) * math.sqrt((number + 1) / len(self.entries)),
            )
        return response

    async def Purge(self, request: Any, context: Any) -> Any:
        self.purges.append(request)
        return cache_pb2.PurgeResponse(entries=3, bytes=1_000)

    async def ListEntries(self, request: Any, context: Any) -> Any:
        self.lists.append(request)
        begin = int(request.page_token or 0)
        page = self.entries[begin : begin + request.page_size]
        more = begin + len(page) < len(self.entries)
        return cache_pb2.ListEntriesResponse(
            entries=page, next_page_token=str(begin + len(page)) if more else ""
        )

    async def GetEntry(self, request: Any, context: Any) -> Any:
        for details in self.entries:
            if details.entry.entry_id == request.entry_id:
                return cache_pb2.GetEntryResponse(entry=details)
        raise errors.not_found("entry", request.entry_id)

    async def VerifyEntries(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.verifications.append(request)
        damaged = cache_pb2.DamagedEntry(entry_id="a" * 64, missing=True, deleted=request.repair)
        damaged.blob.step.index = 2
        yield cache_pb2.VerifyEntriesResponse(entries=1, bytes=1 << 20, damaged=[damaged])
        yield cache_pb2.VerifyEntriesResponse(entries=2, bytes=3 << 20)

    async def Adopt(self, request: Any, context: Any) -> Any:
        self.adoptions.append(request)
        return cache_pb2.AdoptResponse(
            index_id="1" * 32,
            previous_owners=["2" * 32],
            orphaned_blobs=1_200,
            orphaned_bytes=3 << 20,
            broken_entries=5,
        )


class FakeDeployment:
    """Both servicers behind one port; with credentials, behind TLS."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.scheduler = FakeScheduler()
        self.cache = FakeCache()
        self.port = 0
        self._credentials = credentials
        self._server: Any = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        gate = Gate("scheduler")
        gate.open()
        self._server = grpc.aio.server(
            interceptors=[ServiceInterceptor(gate, 10)], options=[("grpc.so_reuseport", 0)]
        )
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(self.scheduler, self._server)
        cache_pb2_grpc.add_CacheServiceServicer_to_server(self.cache, self._server)
        address = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self._credentials)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)


Deployment = TypeVar("Deployment", bound=FakeDeployment)


@contextmanager
def deployment_in_thread(
    build: Callable[[], Deployment] = FakeDeployment,  # type: ignore[assignment]
) -> Iterator[Deployment]:
    """Runs a deployment in a thread, for tests that block: the command line, the sync client."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Deployment:
        deployment = build()
        await deployment.start()
        return deployment

    deployment = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield deployment
    finally:
        asyncio.run_coroutine_threadsafe(deployment.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
