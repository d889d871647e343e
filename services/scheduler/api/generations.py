"""What the public API does, apart from how it is spoken."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import AsyncGenerator

from chorus.common.v1 import plan_pb2, video_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors, telemetry
from chorus_rpc.errors import ChorusError, Violation

from services.scheduler.api import page_token, validation
from services.scheduler.api.validation import Defaults
from services.scheduler.dispatch.dispatcher import Dispatcher
from services.scheduler.dispatch.tools import Tools
from services.scheduler.jobs.notifier import JobNotifier
from services.scheduler.jobs.states import ENDED, UNFINISHED, State
from services.scheduler.jobs.store import Job, NewJob, QueueFull

# Events that a watcher reads at once; more are read when those were sent.
_BATCH = 64


class Generations:
    """All generations of one tenant."""

    def __init__(self, tools: Tools, dispatcher: Dispatcher, changes: JobNotifier) -> None:
        settings = tools.settings
        self._tools = tools
        self._store = tools.store
        self._dispatcher = dispatcher
        self._changes = changes
        self._tenant = settings.tenant
        self._defaults = Defaults(
            model_id=settings.default_model,
            reuse=plan_pb2.ReusePolicy.Value(f"REUSE_POLICY_{settings.default_reuse.upper()}"),
            deadline_seconds=settings.default_deadline_seconds,
        )

    async def submit(self, request: pb.SubmitGenerationRequest) -> tuple[pb.Generation, bool]:
        """The generation, and whether it is new.

        Raises INVALID_FIELD or UNKNOWN_MODEL with every field at fault, REQUEST_ID_REUSED, QUEUE_FULL, or
        DEPENDENCY_UNAVAILABLE while no model is known; none of them leaves anything behind.
        """
        wrong_id = validation.check_request_id(request.request_id)
        digest = _body_digest(request.spec)
        if not wrong_id:
            # Before the checks: a repetition is answered even when its deadline has passed by now.
            known = await self._store.find(self._tenant, request.request_id)
            if known is not None:
                return await self._repeated(known, request.request_id, digest), False
        new = await self._new_job(request, digest, wrong_id)
        try:
            job, created = await self._store.submit(new, self._tools.settings.queue_limit)
        except QueueFull:
            raise self._queue_full() from None
        finally:
            # Also when the caller left meanwhile: the job may be accepted all the same.
            self._dispatcher.wake()
        if not created:
            return await self._repeated(job, request.request_id, digest), False
        return await self._view(job), True

    async def get(self, generation_id: str) -> pb.Generation:
        return await self._view(await self._job(generation_id))

    async def cancel(self, generation_id: str) -> pb.Generation:
        """Ends it unless it has ended; either way returns it as it is then."""
        job = await self._job(generation_id)
        event = pb.GenerationEvent(cancelled=pb.CancelledEvent())
        cancelled = await self._store.advance(job.job_id, UNFINISHED, [event])
        if cancelled is None:
            return await self.get(generation_id)
        await self._dispatcher.abandon(job.job_id)
        return await self._view(cancelled)

    async def page(self, page_size: int, token: str, state: int) -> tuple[list[pb.Generation], str]:
        """Generations, newest first, and the token of the next page, empty on the last one."""
        if state not in pb.GenerationState.values():
            raise errors.invalid(
                "state", f"must be one of {', '.join(pb.GenerationState.keys())}, not {state}"
            )
        size = validation.check_page_size(page_size)
        before = page_token.decode(token, state)
        found = await self._store.page(self._tenant, State(state) if state else None, before, size + 1)
        positions = await self._dispatcher.positions()
        shown = found[:size]
        following = page_token.encode(shown[-1].number, state) if len(found) > size else ""
        return [_view(job, positions.get(job.job_id, 0)) for job in shown], following

    async def watch(self, generation_id: str, after: int) -> AsyncGenerator[pb.GenerationEvent, None]:
        """Every event after sequence number `after`, then live ones until the generation has ended."""
        job = await self._job(generation_id)
        if after > job.generation.last_sequence:
            raise errors.invalid(
                "after_sequence",
                f"must be at most the last_sequence of the generation, {job.generation.last_sequence},"
                f" not {after}",
            )
        with self._changes.of(job.job_id) as changed:
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
                self._changes.raise_if_closed()
                await changed.wait()

    async def video(self, generation_id: str) -> tuple[video_pb2.VideoInfo, AsyncGenerator[bytes, None]]:
        """What the video is, and its bytes. Raises WRONG_STATE when there is none."""
        job = await self._job(generation_id)
        if job.state is not State.SUCCEEDED:
            raise ChorusError(
                errors.WRONG_STATE,
                f"generation {generation_id!r} has no video: it is {job.state.name}"
                + ("" if job.state in ENDED else "; watch it until it has succeeded"),
                metadata={"state": job.state.name},
            )
        return job.generation.video, self._tools.videos.read(job.job_id, job.generation.video)

    async def _job(self, generation_id: str) -> Job:
        if not generation_id:
            raise errors.invalid("generation_id", "must not be empty; SubmitGeneration returns it")
        job = await self._store.get(generation_id)
        if job is None or job.tenant != self._tenant:
            raise errors.not_found("generation", generation_id[:64])
        return job

    async def _view(self, job: Job) -> pb.Generation:
        queued = job.state in UNFINISHED and job.state is not State.RUNNING
        positions = await self._dispatcher.positions() if queued else {}
        return _view(job, positions.get(job.job_id, 0))

    async def _new_job(
        self, request: pb.SubmitGenerationRequest, digest: str, wrong_id: list[Violation]
    ) -> NewJob:
        if not request.HasField("spec"):
            missing = Violation("spec", "must be set: it says what to generate")
            raise errors.invalid_fields([*wrong_id, missing])
        models = await self._tools.catalogue.models()
        try:
            spec = validation.validate_spec(
                request.spec,
                models,
                self._defaults,
                self._tools.clock(),
                # As many bits as survive JSON numbers.
                lambda: secrets.randbits(53),
            )
        except ChorusError as error:
            raise _joined(wrong_id, error) from None
        if wrong_id:
            raise errors.invalid_fields(wrong_id)
        traceparent = telemetry.traceparent()
        return NewJob(
            job_id=secrets.token_hex(16),
            tenant=self._tenant,
            request_id=request.request_id,
            body_digest=digest,
            spec=spec,
            deadline=validation.seconds_of(spec.deadline),
            traceparent=traceparent,
            trace_id=telemetry.parse_trace_id(traceparent),
        )

    async def _repeated(self, job: Job, request_id: str, digest: str) -> pb.Generation:
        if job.body_digest != digest:
            raise errors.invalid_fields(
                [
                    Violation(
                        "request_id",
                        f"{request_id!r} was used before with another spec; choose a new one,"
                        " or send the same spec again",
                    )
                ],
                errors.REQUEST_ID_REUSED,
            )
        return await self._view(job)

    def _queue_full(self) -> ChorusError:
        limit = self._tools.settings.queue_limit
        seconds = math.ceil(max(1.0, self._tools.pace.job_seconds / self._tools.settings.concurrency))
        return ChorusError(
            errors.QUEUE_FULL,
            f"{limit} generations wait already; try again in {seconds} s",
            metadata={"limit": str(limit)},
            retry_after=float(seconds),
        )


def _view(job: Job, position: int) -> pb.Generation:
    generation = pb.Generation()
    generation.CopyFrom(job.generation)
    generation.queue_position = position
    return generation


def _joined(violations: list[Violation], error: ChorusError) -> ChorusError:
    """The same error with more fields at fault, so that a caller mends a request in one round."""
    joined = errors.invalid_fields([*violations, *error.violations], error.reason)
    joined.metadata.update(error.metadata)
    return joined


def _body_digest(spec: pb.GenerationSpec) -> str:
    """Of what makes two requests the same. Not the deadline: a repetition counts its own from now."""
    body = pb.GenerationSpec()
    body.CopyFrom(spec)
    body.ClearField("deadline")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()
