"""The asyncio client of a Chorus deployment."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, Unpack

from chorus.common.v1.video_pb2 import VideoInfo
from chorus.scheduler.v1 import scheduler_pb2
from chorus.scheduler.v1.scheduler_pb2 import Generation, GenerationEvent
from chorus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.channels import calling, open_channel
from chorus_rpc.chunks import BlobAssembler, BlobFault
from chorus_rpc.errors import ChorusError

from chorus_client.spec import ENDED, SpecOptions, is_last, state_of, state_word, submit_request

CALL_SECONDS: Final = 30.0
VIDEO_SECONDS: Final = 600.0
MAX_VIDEO_BYTES: Final = 2 << 30
# As long as the latest deadline that a generation may have.
WATCH_SECONDS: Final = 86_400.0
# How long `watch` bears a scheduler that does not answer.
PATIENCE_SECONDS: Final = 60.0
_GIVE_UP_SECONDS: Final = 5.0
_FIRST_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 3.0
_PAGE: Final = 100

# The scheduler restarts or drains, or something between broke the stream; the generation itself goes on.
_RESUMABLE: Final = frozenset({errors.DEPENDENCY_UNAVAILABLE, errors.SHUTTING_DOWN, errors.CANCELLED})


@dataclass(frozen=True)
class Video:
    """A finished generation and its video."""

    generation: Generation
    data: bytes


class GenerationFailed(ChorusError):
    """A generation ended without a video; `reason` is why, CANCELLED when somebody cancelled it."""

    def __init__(self, generation: Generation) -> None:
        fault = generation.error
        if generation.state == scheduler_pb2.GENERATION_STATE_CANCELLED:
            super().__init__(errors.CANCELLED, f"{generation.generation_id} was cancelled")
        else:
            super().__init__(
                fault.reason or errors.INTERNAL,
                f"{generation.generation_id} failed: {fault.message or 'no reason was given'}",
                metadata=dict(fault.metadata),
            )
        self.generation = generation


class AsyncChorusClient:
    """Submits generations, follows them and brings their videos.

    Every method raises ChorusError: `reason` says what kind, `violations` which fields were at fault. Every
    call has a deadline.

    Args:
        target: the scheduler's "host:port", or any gRPC name.
        call_seconds: the longest that a unary call may take.
    """

    def __init__(self, target: str, *, call_seconds: float = CALL_SECONDS) -> None:
        telemetry.configure("client")
        self.target = target
        self._call_seconds = call_seconds
        self._channel = open_channel(target)
        self._stub = SchedulerServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel; calls still running end."""
        await self._channel.close()

    async def submit(self, prompt: str, **options: Unpack[SpecOptions]) -> Generation:
        """Hands in a generation; returns it as accepted, durable. Repeating a `request_id` is safe."""
        return await self._submit(submit_request(prompt, options))

    async def _submit(self, request: scheduler_pb2.SubmitGenerationRequest) -> Generation:
        with calling("scheduler"):
            return (await self._stub.SubmitGeneration(request, timeout=self._call_seconds)).generation

    async def get(self, generation_id: str) -> Generation:
        """The generation as it is now."""
        request = scheduler_pb2.GetGenerationRequest(generation_id=generation_id)
        with calling("scheduler"):
            return (await self._stub.GetGeneration(request, timeout=self._call_seconds)).generation

    async def result(self, generation_id: str, *, patience: float = PATIENCE_SECONDS) -> Video:
        """A generation that has ended, with its video; GenerationFailed when it has none.

        Args:
            patience: seconds that a scheduler may be away, for instance to restart.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + patience
        while True:
            try:
                generation = await self.get(generation_id)
                raise_unless_succeeded(generation)
                return Video(generation, await self.video(generation_id))
            except GenerationFailed:
                raise
            except ChorusError as error:
                if error.reason not in _RESUMABLE or clock() >= end:
                    raise
            await asyncio.sleep(random.uniform(0.5, 1) * min(_MAX_BACKOFF_SECONDS, patience))

    async def cancel(self, generation_id: str) -> Generation:
        """Ends a generation at its next step; one that has ended is returned as it is."""
        request = scheduler_pb2.CancelGenerationRequest(generation_id=generation_id)
        with calling("scheduler"):
            return (await self._stub.CancelGeneration(request, timeout=self._call_seconds)).generation

    async def list(self, state: str | None = None, limit: int = 50) -> tuple[Generation, ...]:
        """At most `limit` generations, newest first; `state` is one of `requests.STATES`."""
        request = scheduler_pb2.ListGenerationsRequest(state=state_of(state))
        found: tuple[Generation, ...] = ()
        while len(found) < limit:
            request.page_size = min(_PAGE, limit - len(found))
            with calling("scheduler"):
                response = await self._stub.ListGenerations(request, timeout=self._call_seconds)
            found += tuple(response.generations)
            request.page_token = response.next_page_token
            if not request.page_token:
                break
        return found

    async def watch(
        self,
        generation_id: str,
        after_sequence: int = 0,
        *,
        timeout: float = WATCH_SECONDS,
        patience: float = PATIENCE_SECONDS,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Every event after a sequence number, then live ones until the generation ends; each exactly once.

        A stream that breaks is taken up again behind the last event seen. Close the iterator (`aclosing`) to
        stop early.

        Args:
            timeout: seconds for all of it; DEADLINE_EXCEEDED when they pass. The generation goes on.
            patience: seconds without an answer after which the fault is raised.
        """
        clock = asyncio.get_running_loop().time
        end, silent_since, failures, last = clock() + timeout, clock(), 0, after_sequence
        while True:
            try:
                async with contextlib.aclosing(self._events(generation_id, last, end - clock())) as events:
                    async for event in events:
                        silent_since, failures = clock(), 0
                        if event.sequence <= last:
                            continue
                        last = event.sequence
                        yield event
                        if is_last(event):
                            return
                generation = await self.get(generation_id)
                if generation.state in ENDED and generation.last_sequence <= last:
                    return
                silent_since = clock()
            except ChorusError as error:
                if error.reason not in _RESUMABLE or clock() - silent_since > patience:
                    raise
            pause = min(_MAX_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2**failures) * random.uniform(0.5, 1)
            failures = min(failures + 1, 16)
            if clock() + pause >= end:
                raise ChorusError(
                    errors.DEADLINE_EXCEEDED, f"{generation_id} had not ended after {timeout:g} s of watching"
                )
            await asyncio.sleep(pause)

    async def _events(
        self, generation_id: str, last: int, timeout: float
    ) -> AsyncGenerator[GenerationEvent, None]:
        request = scheduler_pb2.WatchGenerationRequest(generation_id=generation_id, after_sequence=last)
        with calling("scheduler"):
            call = self._stub.WatchGeneration(request, timeout=max(timeout, 0.001))
            try:
                async for response in call:
                    yield response.event
            finally:
                call.cancel()

    async def video(self, generation_id: str) -> bytes:
        """The mp4 of a generation that succeeded, its length and digest checked."""
        request = scheduler_pb2.GetVideoRequest(generation_id=generation_id)
        parts: BlobAssembler | None = None
        try:
            with calling("scheduler"):
                call = self._stub.GetVideo(request, timeout=VIDEO_SECONDS)
                try:
                    async for response in call:
                        if response.HasField("header"):
                            parts = _assembler(response.header)
                        elif parts is not None:
                            parts.add(response.chunk)
                finally:
                    call.cancel()
            if parts is None:
                raise BlobFault("no header came")
            return parts.finish()
        except BlobFault as fault:
            raise ChorusError(
                errors.BLOB_CORRUPT, f"the video of {generation_id} is damaged: {fault}"
            ) from fault

    async def save_video(self, generation_id: str, path: Path | str) -> Path:
        """Writes the mp4 to `path`: the whole file or none."""
        data = await self.video(generation_id)
        return await asyncio.to_thread(write_whole, Path(path), data)

    async def generate(
        self,
        prompt: str,
        *,
        timeout: float = WATCH_SECONDS,
        on_accepted: Callable[[Generation], None] | None = None,
        on_event: Callable[[GenerationEvent], None] | None = None,
        **options: Unpack[SpecOptions],
    ) -> Video:
        """`submit`, `watch` and `video` in one, as one trace.

        Cancelling the caller cancels the generation. A generation that fails or is cancelled elsewhere raises
        GenerationFailed.

        Args:
            timeout: seconds to wait; DEADLINE_EXCEEDED when they pass. The generation goes on: use
                `deadline` to bound it as well.
            on_accepted: called once, with the generation as accepted.
            on_event: called with each event.
        """
        request = submit_request(prompt, options)
        attributes = {
            semconv.GEN_AI_OPERATION: "generate_content",
            semconv.GEN_AI_MODEL: request.spec.model_id or "default",
            semconv.REQUEST_ID: request.request_id,
        }
        name = semconv.SPAN_CLIENT_GENERATE.format(model=attributes[semconv.GEN_AI_MODEL])
        with telemetry.span(name, attributes) as span:
            submission = asyncio.ensure_future(self._submit(request))
            try:
                generation = await asyncio.shield(submission)
                span.set_attribute(semconv.GENERATION_ID, generation.generation_id)
                if on_accepted is not None:
                    on_accepted(generation)
                watching = self.watch(generation.generation_id, timeout=timeout)
                async with contextlib.aclosing(watching) as events:
                    async for event in events:
                        if on_event is not None:
                            on_event(event)
                video = await self.result(generation.generation_id)
            except asyncio.CancelledError:
                raise asyncio.CancelledError(await self._give_up(submission)) from None
            except GenerationFailed as failed:
                span.set_attribute(semconv.GENERATION_STATE, state_word(failed.generation.state))
                raise
            span.set_attribute(semconv.GENERATION_STATE, state_word(video.generation.state))
            return video

    async def _give_up(self, submission: asyncio.Future[Generation]) -> str:
        """Cancels what was, or is just being, submitted; says how that went."""
        try:
            async with asyncio.timeout(_GIVE_UP_SECONDS):
                generation = await submission
                await self.cancel(generation.generation_id)
        except (ChorusError, TimeoutError) as fault:
            return f"interrupted; the scheduler could not be told: {fault or 'no answer'}"
        return f"interrupted; {generation.generation_id} is cancelled"


def raise_unless_succeeded(generation: Generation) -> None:
    """Raises GenerationFailed for a generation that failed or was cancelled."""
    if generation.state != scheduler_pb2.GENERATION_STATE_SUCCEEDED:
        raise GenerationFailed(generation)


def write_whole(path: Path, data: bytes) -> Path:
    """Writes through a neighbour file, so that nobody ever sees half of it."""
    part = path.with_name(f".{path.name}.{random.getrandbits(32):08x}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _assembler(header: VideoInfo) -> BlobAssembler:
    return BlobAssembler(header.size_bytes, header.digest, MAX_VIDEO_BYTES)
