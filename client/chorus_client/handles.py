"""Handles of generations: follow one, wait for its video, save it, cancel it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc import errors
from chorus_rpc.chunks import BlobAssembler, BlobFault
from chorus_rpc.errors import ChorusError

from chorus_client.connection import Connection, check_seconds
from chorus_client.events import Event
from chorus_client.files import write_atomically
from chorus_client.loop_thread import LoopThread
from chorus_client.results import Generation, GenerationError, Video

if TYPE_CHECKING:
    from chorus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceAsyncStub

# Upper bound on the deadline of a generation, and so on the time that it can be followed.
WATCH_SECONDS: Final = 86_400.0
# Time that an unreachable scheduler may need to become reachable again, for instance to restart.
PATIENCE_SECONDS: Final = 60.0
_VIDEO_SECONDS: Final = 600.0
_MAX_VIDEO_BYTES: Final = 2 << 30
_FIRST_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 3.0
# Time by which gRPC may end a stream before its deadline has passed on the loop's clock.
_TIMER_SECONDS: Final = 0.1

# The scheduler restarts or drains, or the network broke the stream; the generation itself continues.
_RESUMABLE: Final = frozenset({errors.DEPENDENCY_UNAVAILABLE, errors.SHUTTING_DOWN, errors.CANCELLED})


class AsyncGenerationHandle:
    """Handle of a generation, returned by `submit` and `handle` of AsyncChorusClient.

    Methods raise ChorusError. Waiting survives a restart of the scheduler: `timeout` bounds the total wait,
    in seconds (DEADLINE_EXCEEDED after it, while the generation continues), and `patience` the time without
    an answer, in seconds, after which the fault is raised.

    Attributes:
        id: generation id.
        accepted: the generation as `submit` returned it; None for a handle from `client.handle`.
    """

    def __init__(
        self,
        connection: Connection[SchedulerServiceAsyncStub],
        generation_id: str,
        accepted: Generation | None = None,
    ) -> None:
        self.id = generation_id
        self.accepted = accepted
        self._connection = connection

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    async def status(self, *, timeout: float | None = None) -> Generation:
        """Returns the current state of the generation."""
        request = scheduler_pb2.GetGenerationRequest(generation_id=self.id)
        response = await self._connection.call(self._connection.stub.GetGeneration, request, timeout)
        return Generation.from_proto(response.generation)

    async def cancel(self, *, timeout: float | None = None) -> Generation:
        """Ends the generation at its next step; one that has ended is returned unchanged."""
        request = scheduler_pb2.CancelGenerationRequest(generation_id=self.id)
        response = await self._connection.call(self._connection.stub.CancelGeneration, request, timeout)
        return Generation.from_proto(response.generation)

    async def delete(self, *, timeout: float | None = None) -> None:
        """Deletes a generation that has ended, with its events and its video.

        Its latents stay in the cache until they expire or are purged there. Raises ChorusError (WRONG_STATE)
        for a generation that has not ended.
        """
        request = scheduler_pb2.DeleteGenerationRequest(generation_id=self.id)
        await self._connection.call(self._connection.stub.DeleteGeneration, request, timeout)

    async def result(
        self,
        *,
        timeout: float = WATCH_SECONDS,
        patience: float = PATIENCE_SECONDS,
        on_event: Callable[[Event], None] | None = None,
    ) -> Video:
        """Waits for the end and returns the video. Raises GenerationFailed or GenerationCancelled.

        Args:
            on_event: callback that receives each event, past and live.
        """
        end = asyncio.get_running_loop().time() + check_seconds("timeout", timeout)
        saved, succeeded = 0.0, False
        async with contextlib.aclosing(self.events(timeout=timeout, patience=patience)) as events:
            async for event in events:
                saved = event.seconds_saved or saved
                succeeded = succeeded or event.kind == "succeeded"
                if on_event is not None:
                    on_event(event)
        return await self._fetch(saved, succeeded, end, patience)

    async def save(
        self, path: Path | str, *, timeout: float = WATCH_SECONDS, patience: float = PATIENCE_SECONDS
    ) -> Path:
        """Waits for the end and writes the mp4 file atomically. Returns its path."""
        video = await self.result(timeout=timeout, patience=patience)
        return await asyncio.to_thread(write_atomically, Path(path), video.data)

    async def events(
        self,
        after_sequence: int = 0,
        *,
        timeout: float = WATCH_SECONDS,
        patience: float = PATIENCE_SECONDS,
    ) -> AsyncGenerator[Event, None]:
        """Yields each event after a sequence number once, past and live, until the generation ends.

        A stream that breaks is resumed after the last event. To stop early, close the iterator
        (`contextlib.aclosing`); the generation continues.
        """
        if not isinstance(after_sequence, int) or not 0 <= after_sequence < 1 << 64:
            raise errors.invalid("after_sequence", f"must be 0 to 2^64 − 1, not {after_sequence!r}")
        check_seconds("timeout", timeout)
        check_seconds("patience", patience)
        clock = asyncio.get_running_loop().time
        end, silent_since, failures, last = clock() + timeout, clock(), 0, after_sequence
        while True:
            try:
                async with contextlib.aclosing(self._stream(last, end - clock())) as events:
                    async for event in events:
                        silent_since, failures = clock(), 0
                        if event.sequence <= last:
                            continue
                        last = event.sequence
                        yield event
                        if event.last:
                            return
                generation = await self.status()
                if generation.done and generation.last_sequence <= last:
                    return
                silent_since = clock()
            except ChorusError as error:
                if error.reason == errors.DEADLINE_EXCEEDED and clock() >= end - _TIMER_SECONDS:
                    raise self._timed_out(timeout) from error
                if error.reason not in _RESUMABLE or clock() - silent_since > patience:
                    raise
            pause = min(_MAX_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2**failures) * random.uniform(0.5, 1)
            failures = min(failures + 1, 16)
            if clock() + pause >= end:
                raise self._timed_out(timeout)
            await asyncio.sleep(pause)

    def _timed_out(self, timeout: float) -> ChorusError:
        return ChorusError(errors.DEADLINE_EXCEEDED, f"{self.id} had not ended after {timeout:g} s")

    async def _stream(self, last: int, timeout: float) -> AsyncGenerator[Event, None]:
        request = scheduler_pb2.WatchGenerationRequest(generation_id=self.id, after_sequence=last)
        responses = self._connection.stream(self._connection.stub.WatchGeneration, request, timeout)
        async with contextlib.aclosing(responses):
            async for response in responses:
                yield Event.from_proto(response.event)

    async def _fetch(self, saved: float, succeeded: bool, end: float, patience: float) -> Video:
        clock = asyncio.get_running_loop().time
        give_up = min(end, clock() + patience)
        while True:
            try:
                if succeeded:
                    return await self._fetch_both(saved, end - clock())
                generation = await self.status()
                generation.raise_for_state()
                return Video(generation, await self._download(end - clock()), saved)
            except GenerationError:
                raise
            except ChorusError as error:
                if error.reason not in _RESUMABLE or clock() >= give_up:
                    raise
            await asyncio.sleep(random.uniform(0.5, 1) * min(_MAX_BACKOFF_SECONDS, patience))

    async def _fetch_both(self, saved: float, timeout: float) -> Video:
        """Fetches state and video at the same time: a generation that succeeded has both."""
        download = asyncio.create_task(self._download(timeout))
        try:
            generation = await self.status()
            generation.raise_for_state()
            return Video(generation, await download, saved)
        finally:
            download.cancel()
            await asyncio.wait([download])
            if not download.cancelled():
                download.exception()  # asyncio logs the exception of a task that is never retrieved

    async def _download(self, timeout: float) -> bytes:
        """Returns the mp4, its length and digest checked."""
        request = scheduler_pb2.GetVideoRequest(generation_id=self.id)
        responses = self._connection.stream(
            self._connection.stub.GetVideo, request, min(timeout, _VIDEO_SECONDS)
        )
        blob: BlobAssembler | None = None
        try:
            async with contextlib.aclosing(responses):
                async for response in responses:
                    if response.HasField("header"):
                        header = response.header
                        blob = BlobAssembler(header.size_bytes, header.digest, _MAX_VIDEO_BYTES)
                    elif blob is not None:
                        blob.add(response.chunk)
            if blob is None:
                raise BlobFault("the stream has no header")
            return blob.finish()
        except BlobFault as fault:
            raise ChorusError(errors.BLOB_CORRUPT, f"the video of {self.id} is damaged: {fault}") from fault


class GenerationHandle:
    """Handle of a generation, returned by `submit` and `handle` of ChorusClient. Every method blocks.

    Attributes, methods and errors are those of AsyncGenerationHandle.
    """

    def __init__(self, handle: AsyncGenerationHandle, loop: LoopThread) -> None:
        self.id = handle.id
        self.accepted = handle.accepted
        self._handle = handle
        self._loop = loop

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    def status(self, *, timeout: float | None = None) -> Generation:
        """Returns the current state of the generation."""
        return self._loop.run(self._handle.status(timeout=timeout))

    def cancel(self, *, timeout: float | None = None) -> Generation:
        """Ends the generation at its next step; one that has ended is returned unchanged."""
        return self._loop.run(self._handle.cancel(timeout=timeout))

    def delete(self, *, timeout: float | None = None) -> None:
        """Deletes a generation that has ended, with its video; its latents stay in the cache."""
        self._loop.run(self._handle.delete(timeout=timeout))

    def result(
        self,
        *,
        timeout: float = WATCH_SECONDS,
        patience: float = PATIENCE_SECONDS,
        on_event: Callable[[Event], None] | None = None,
    ) -> Video:
        """Waits for the end and returns the video. Raises GenerationFailed or GenerationCancelled.

        Args:
            on_event: callback that receives each event, past and live, in the client's thread; it must not
                call the client.
        """
        return self._loop.run(self._handle.result(timeout=timeout, patience=patience, on_event=on_event))

    def save(
        self, path: Path | str, *, timeout: float = WATCH_SECONDS, patience: float = PATIENCE_SECONDS
    ) -> Path:
        """Waits for the end and writes the mp4 file atomically. Returns its path."""
        return self._loop.run(self._handle.save(path, timeout=timeout, patience=patience))

    def events(
        self,
        after_sequence: int = 0,
        *,
        timeout: float = WATCH_SECONDS,
        patience: float = PATIENCE_SECONDS,
    ) -> Iterator[Event]:
        """Yields each event after a sequence number once, past and live, until the generation ends."""
        events = self._handle.events(after_sequence, timeout=timeout, patience=patience)

        async def following() -> Event | None:
            return await anext(events, None)

        async def stop() -> None:
            await events.aclose()

        try:
            while (event := self._loop.run(following())) is not None:
                yield event
        finally:
            if self._loop.is_usable:
                self._loop.run(stop())
