"""Operations of the public API, independent of the transport."""

from __future__ import annotations

import copy
import hashlib
import math
import secrets
import time
from collections.abc import AsyncGenerator, Sequence

from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors, telemetry
from chorus_rpc.errors import ChorusError, Violation

from services.scheduler.api import page_token, validation
from services.scheduler.api.changes import Changes
from services.scheduler.api.outputs import check_outputs, choose_seeds, make_output
from services.scheduler.api.rate_limit import RateLimit
from services.scheduler.api.search import parse_filter
from services.scheduler.api.validation import Defaults
from services.scheduler.api.videos import Videos
from services.scheduler.api.view import Views, describe_model, view_job
from services.scheduler.dispatch.dispatcher import Dispatcher
from services.scheduler.dispatch.preparation import Preparation
from services.scheduler.dispatch.retry import RetryableFailure
from services.scheduler.dispatch.start_times import StartTimes
from services.scheduler.dispatch.throughput import Throughput, expected_seconds
from services.scheduler.jobs.deadline import to_unix_seconds
from services.scheduler.jobs.notifier import JobNotifier
from services.scheduler.jobs.ordering import Priority
from services.scheduler.jobs.states import ENDED, UNFINISHED, State
from services.scheduler.jobs.store import Job, JobStore, NewJob, QueueFull, TenantLimitReached, TooLate
from services.scheduler.jobs.video_store import VideoStore
from services.scheduler.peers.encoder_registry import EncoderRegistry
from services.scheduler.peers.model_registry import ModelRegistry
from services.scheduler.settings import SchedulerSettings
from services.scheduler.webhooks.acceptance import WebhookAcceptance

# Number of events that a watcher reads at once; further ones are read when these have been sent.
_BATCH = 64


class Generations:
    """All generations of one tenant."""

    def __init__(
        self,
        store: JobStore,
        videos: VideoStore,
        models: ModelRegistry,
        encoders: EncoderRegistry,
        throughput: Throughput,
        preparation: Preparation,
        dispatcher: Dispatcher,
        notifier: JobNotifier,
        webhooks: WebhookAcceptance,
        start_times: StartTimes,
        changes: Changes,
        views: Views,
        settings: SchedulerSettings,
    ) -> None:
        self._store = store
        self._video_store = videos
        self._video_url_seconds = settings.video_url_seconds
        self._models = models
        self._encoders = encoders
        self._throughput = throughput
        self._preparation = preparation
        self._dispatcher = dispatcher
        self._notifier = notifier
        self._webhooks = webhooks
        self._start_times = start_times
        self._changes = changes
        self._views = views
        self._tenant = settings.tenant
        self._rate_limit = RateLimit(settings.tenant_requests_per_minute, settings.tenant_burst)
        self._queue_limit = settings.queue_limit
        self._unfinished_limit = settings.tenant_unfinished_limit
        self._defaults = Defaults(
            model_id=settings.default_model,
            reuse=plan_pb2.ReusePolicy.Value(f"REUSE_POLICY_{settings.default_reuse.upper()}"),
            deadline_seconds=settings.default_deadline_seconds,
        )

    def for_tenant(self, tenant: str) -> Generations:
        """Returns the generations of a tenant, which share everything else with these."""
        scoped = copy.copy(self)
        scoped._tenant = tenant
        return scoped

    @property
    def videos(self) -> Videos:
        """Videos of this tenant's generations."""
        return Videos(self._job, self._video_store, self._video_url_seconds)

    async def submit(self, request: pb.SubmitGenerationRequest) -> tuple[list[pb.Generation], bool]:
        """Returns the generations of all outputs, and whether they are new.

        Raises INVALID_FIELD or UNKNOWN_MODEL with every invalid field, or for a deadline that cannot be met,
        UNKNOWN_ENCODER for a model whose encoder the embedder does not serve, REQUEST_ID_REUSED,
        QUEUE_FULL, RATE_LIMITED, TENANT_LIMIT_REACHED, or DEPENDENCY_UNAVAILABLE while no model is known; a
        rejected request stores nothing.
        """
        id_violations = validation.check_request_id(request.request_id)
        digest = _body_digest(request)
        if not id_violations:
            # Before validation: a repetition is answered even if its deadline has passed meanwhile.
            known = await self._store.find(self._tenant, request.request_id)
            if known:
                return await self._answer_repetition(known, request.request_id, digest), False
        self._rate_limit.take(self._tenant)
        outputs = await self._new_jobs(request, digest, id_violations)
        if outputs[0].spec.HasField("webhook"):
            await self._webhooks.require_room(self._tenant)
        least = self._least_seconds(outputs)
        try:
            accepted = await self._store.submit_all(outputs, self._queue_limit, self._unfinished_limit, least)
        except TooLate as late:
            left = outputs[0].deadline - time.time()
            raise errors.invalid(
                "spec.timeout",
                f"cannot be met: the generations before this one need {late.wait:.1f} s and its own run at"
                f" least {least:.1f} s, but {left:.1f} s are left; allow more than {late.wait + least:.1f} s",
            ) from None
        except QueueFull:
            raise self._queue_full(len(outputs)) from None
        except TenantLimitReached:
            raise self._tenant_limit_reached() from None
        finally:
            # Even if the caller has cancelled meanwhile, because the job may have been accepted.
            self._dispatcher.wake()
        if not accepted.created:
            return await self._answer_repetition(accepted.jobs, request.request_id, digest), False
        return [view_job(job, accepted.positions[job.job_id]) for job in accepted.jobs], True

    async def get(self, generation_id: str) -> pb.Generation:
        """Returns a generation. Raises NOT_FOUND."""
        return await self._views.one(await self._job(generation_id))

    async def cancel(self, generation_id: str) -> pb.Generation:
        """Cancels a generation unless it has ended; returns its state afterwards in either case."""
        job = await self._job(generation_id)
        event = pb.GenerationEvent(cancelled=pb.CancelledEvent())
        cancelled = await self._store.advance(job.job_id, UNFINISHED, [event])
        if cancelled is None:
            return await self.get(generation_id)
        await self._dispatcher.abandon(job.job_id)
        return await self._views.one(cancelled)

    async def delete(self, generation_id: str) -> None:
        """Deletes a generation that has ended, and its video. Raises WRONG_STATE for another."""
        job = await self._job(generation_id)
        if job.state not in ENDED:
            raise ChorusError(
                errors.WRONG_STATE,
                f"generation {generation_id!r} is {job.state.name} and cannot be deleted: cancel it, or wait"
                " for its end",
                metadata={"state": job.state.name},
            )
        # The file goes first: after a crash in between, the row still names it.
        await self._video_store.remove([job.job_id])
        await self._store.forget([job.job_id])

    async def report(self, request: pb.ReportGenerationRequest) -> pb.Generation:
        """Stores what is wrong with a video. Raises NOT_FOUND, INVALID_FIELD or WRONG_STATE."""
        return await self._views.one(
            await self._changes.report(await self._job(request.generation_id), request)
        )

    async def withdraw_report(self, generation_id: str) -> pb.Generation:
        """Removes the report of a generation, if it has one. Raises NOT_FOUND."""
        return await self._views.one(await self._changes.withdraw_report(await self._job(generation_id)))

    async def change_priority(self, request: pb.ChangePriorityRequest) -> pb.Generation:
        """Changes the class of a generation that waits. Raises NOT_FOUND, INVALID_FIELD or WRONG_STATE."""
        job = await self._job(request.generation_id)
        return await self._views.one(await self._changes.change_priority(job, request))

    async def list_models(self) -> list[pb.Model]:
        """Returns the models that a request can name, the default first."""
        models = list((await self._models.models()).values())
        models.sort(key=lambda model: model.model_id != self._defaults.model_id)
        return [describe_model(model) for model in models]

    async def preview(self, spec: pb.GenerationSpec) -> pb.PreviewPlanResponse:
        """Plans a request without accepting it. Raises as `submit` does."""
        self._rate_limit.take(self._tenant)
        [new] = await self._new_jobs(pb.SubmitGenerationRequest(spec=spec), "", [])
        job = Job(
            new.job_id,
            0,
            new.tenant,
            "",
            State.QUEUED,
            new.traceparent,
            0,
            pb.Generation(spec=new.spec, seed_chosen=new.seed_chosen),
        )
        try:
            prepared = await self._preparation.prepare(job)
        except RetryableFailure as failure:
            raise failure.cause from failure
        step = self._throughput.seconds_per_step(new.spec, prepared.model)
        run = expected_seconds(prepared.plan, step, self._throughput.decode_seconds(new.spec))
        return pb.PreviewPlanResponse(
            spec=new.spec,
            plan=prepared.plan,
            run_seconds=run,
            queue_seconds=await self._start_times.until_free(new.priority)
            + await self._store.expect_wait(self._tenant, new.priority, run),
            warnings=prepared.warnings,
        )

    async def page(self, request: pb.ListGenerationsRequest) -> tuple[list[pb.Generation], str]:
        """Returns generations in the order of the list, and the token of the next page, empty on the last
        one.

        Raises NOT_FOUND for an `after_generation_id` that the tenant does not have.
        """
        wanted = parse_filter(request)
        size = validation.check_page_size(request.page_size)
        beyond = page_token.decode(request)
        if request.after_generation_id:
            beyond = (await self._job(request.after_generation_id)).number
        page = await self._store.page(self._tenant, wanted, beyond, size)
        next_token = "" if page.beyond is None else page_token.encode(page.beyond, request)
        return await self._views.all(page.jobs), next_token

    async def watch(self, generation_id: str, after: int) -> AsyncGenerator[pb.GenerationEvent, None]:
        """Yields every event after sequence number `after`, then live ones until the generation has ended."""
        job = await self._job(generation_id)
        if after > job.generation.last_sequence:
            raise errors.invalid(
                "after_sequence",
                f"must be at most the last_sequence of the generation, {job.generation.last_sequence},"
                f" not {after}",
            )
        with self._notifier.subscribe(job.job_id) as changed:
            while True:
                changed.clear()
                events = await self._store.events(job.job_id, after, _BATCH)
                for event in events:
                    yield event
                    after = event.sequence
                if events:
                    continue
                job = await self._job(generation_id)
                if job.generation.last_sequence > after:
                    continue
                if job.state in ENDED:
                    return
                self._notifier.raise_if_closed()
                await changed.wait()

    async def _job(self, generation_id: str) -> Job:
        if not generation_id:
            raise errors.invalid("generation_id", "must not be empty; SubmitGeneration returns it")
        job = await self._store.get(generation_id)
        if job is None or job.tenant != self._tenant:
            raise errors.not_found("generation", generation_id[:64])
        return job

    async def _new_jobs(
        self, request: pb.SubmitGenerationRequest, digest: str, id_violations: list[Violation]
    ) -> list[NewJob]:
        """Returns the jobs of all outputs of a request."""
        if not request.HasField("spec"):
            missing = Violation("spec", "must be set: it describes the video to generate")
            raise errors.invalid_fields([*id_violations, missing])
        models = await self._models.models()
        outputs_violations = check_outputs(request)
        count = 1 if outputs_violations else request.outputs or 1
        seeds = choose_seeds(request.spec, count)
        webhook, webhook_violations = self._webhooks.accept(self._tenant, request.spec)
        try:
            spec = validation.validate_spec(
                request.spec,
                models,
                self._defaults,
                time.time(),
                lambda: seeds[0],
            )
        except ChorusError as error:
            raise _join([*id_violations, *outputs_violations, *webhook_violations], error) from None
        spec.MergeFrom(pb.GenerationSpec(webhook=webhook))
        violations = [*id_violations, *outputs_violations, *webhook_violations]
        if spec.donor_generation_id:
            donor = await self._store.get(spec.donor_generation_id)
            own = donor is not None and donor.tenant == self._tenant
            violations += validation.apply_donor(
                request.spec, spec, donor.generation if donor and own else None
            )
        if violations:
            raise errors.invalid_fields(violations)
        self._encoders.require_encoder(models[spec.model_id])
        traceparent = telemetry.traceparent()
        first = NewJob(
            job_id=secrets.token_hex(16),
            tenant=self._tenant,
            request_id=request.request_id,
            body_digest=digest,
            spec=spec,
            deadline=to_unix_seconds(spec.deadline),
            traceparent=traceparent,
            trace_id=telemetry.parse_trace_id(traceparent),
            priority=Priority(spec.priority),
            work=self._throughput.full_seconds(spec, models[spec.model_id]),
            # The seeds of several outputs count as stated: with their donor's seed all would be one video.
            seed_chosen=count == 1 and not request.spec.HasField("seed") and not spec.donor_generation_id,
            output_count=count,
        )
        return [first, *(make_output(first, index, seeds[index - 1]) for index in range(2, count + 1))]

    def _least_seconds(self, outputs: Sequence[NewJob]) -> float:
        """Returns the seconds that the runs of a request's outputs take at least.

        Only what is known counts, since a job that may just be late has a chance.
        """
        spec = outputs[0].spec
        reuses = spec.reuse != plan_pb2.REUSE_POLICY_OFF or spec.HasField("explicit_reuse")
        run = self._throughput.decode_seconds(spec) if reuses else outputs[0].work
        return run * max(1.0, len(outputs) / max(1, self._dispatcher.slots))

    async def _answer_repetition(
        self, known: Sequence[Job], request_id: str, digest: str
    ) -> list[pb.Generation]:
        if known[0].body_digest != digest:
            raise errors.invalid_fields(
                [
                    Violation(
                        "request_id",
                        f"{request_id!r} was used before with another spec or number of outputs; choose a"
                        " new one, or send the same request again",
                    )
                ],
                errors.REQUEST_ID_REUSED,
            )
        return await self._views.all(known)

    def _queue_full(self, outputs: int) -> ChorusError:
        limit = self._queue_limit
        seconds = self._expect_next_end()
        cause = f"the queue is full: {limit} generations are waiting (CHORUS_SCHEDULER_QUEUE_LIMIT);"
        if outputs > 1:
            cause = (
                f"the queue has no room for {outputs} outputs: at most {limit} generations may wait"
                " (CHORUS_SCHEDULER_QUEUE_LIMIT); request fewer, or"
            )
        return ChorusError(
            errors.QUEUE_FULL,
            f"{cause} try again in {seconds} s",
            metadata={"limit": str(limit)},
            retry_after=float(seconds),
        )

    def _tenant_limit_reached(self) -> ChorusError:
        limit, setting = self._unfinished_limit, "CHORUS_SCHEDULER_TENANT_UNFINISHED_LIMIT"
        seconds = self._expect_next_end()
        return ChorusError(
            errors.TENANT_LIMIT_REACHED,
            f"tenant {self._tenant!r} would have more than {limit} generations that have not ended"
            f" ({setting}); cancel one, or try again in {seconds} s",
            metadata={"limit": str(limit), "setting": setting},
            retry_after=float(seconds),
        )

    def _expect_next_end(self) -> int:
        """Returns the whole seconds in which about one generation ends."""
        return math.ceil(max(1.0, self._throughput.job_seconds / self._dispatcher.slots))


def _join(violations: list[Violation], error: ChorusError) -> ChorusError:
    """Returns `error` with more violations, so that a caller can correct a request in one round."""
    joined = errors.invalid_fields([*violations, *error.violations], error.reason)
    joined.metadata.update(error.metadata)
    return joined


def _body_digest(request: pb.SubmitGenerationRequest) -> str:
    """Returns the digest by which a repetition is recognised.

    It excludes timeout and deadline: a repetition counts its own from the time it is sent.
    """
    body = pb.GenerationSpec()
    body.CopyFrom(request.spec)
    body.ClearField("timeout")
    body.ClearField("deadline")
    digest = hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()
    return f"{digest}x{request.outputs}" if request.outputs > 1 else digest
