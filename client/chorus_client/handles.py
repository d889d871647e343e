"""Handles of generations: follow one, wait for its video, save it, cancel it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from chorus_client.connection import Connection, check_seconds
from chorus_client.downloads import VIDEO_SECONDS, Download, Thumbnail, VideoUrl, read_range, stream_range
from chorus_client.events import Event
from chorus_client.files import write_atomically
from chorus_client.loop_thread import LoopThread
from chorus_client.problem_reports import build_report_request
from chorus_client.results import Generation, GenerationError, Video
from chorus_client.states import parse_priority

if TYPE_CHECKING:
    from chorus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceAsyncStub

Item = TypeVar("Item")

# Upper bound on the deadline of a generation, and so on the time that it can be followed.
WATCH_SECONDS: Final = 86_400.0
# Time that an unreachable scheduler may need to become reachable again, for instance to restart.
PATIENCE_SECONDS: Final = 60.0
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

    async def report(self, problem: str, comment: str = "", *, timeout: float | None = None) -> Generation:
        """Stores what is wrong with the video, in place of an earlier report.

        Raises ChorusError (WRONG_STATE) unless the generation has succeeded.

        Args:
            problem: "donor_visible" (something of the donor is left), "prompt_not_followed",
                "broken_picture", "broken_motion" or "other".
            comment: at most 1,000 bytes of printable text.
            timeout: deadline of the call, in seconds.
        """
        request = build_report_request(self.id, problem, comment)
        response = await self._connection.call(self._connection.stub.ReportGeneration, request, timeout)
        return Generation.from_proto(response.generation)

    async def withdraw_report(self, *, timeout: float | None = None) -> Generation:
        """Removes the report; a generation without one is returned unchanged."""
        request = scheduler_pb2.WithdrawReportRequest(generation_id=self.id)
        response = await self._connection.call(self._connection.stub.WithdrawReport, request, timeout)
        return Generation.from_proto(response.generation)

    async def change_priority(self, priority: str, *, timeout: float | None = None) -> Generation:
        """Changes the class of a generation that waits in the queue.

        Raises ChorusError (WRONG_STATE) for one that has ended, and for another class of one that runs.

        Args:
            priority: "low", "normal" or "high".
            timeout: deadline of the call, in seconds.
        """
        request = scheduler_pb2.ChangePriorityRequest(
            generation_id=self.id, priority=parse_priority(priority)
        )
        response = await self._connection.call(self._connection.stub.ChangePriority, request, timeout)
        return Generation.from_proto(response.generation)

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

    async def video(self, *, offset: int = 0, length: int = 0, timeout: float = VIDEO_SECONDS) -> bytes:
        """Returns a range of the mp4 of a generation that succeeded, by one call.

        The digest of the whole video cannot verify a range; `result` verifies and resumes a whole download.

        Args:
            offset: first byte, below the size of the video.
            length: number of bytes; 0 means all from the offset to the end.
            timeout: deadline of the call, in seconds.
        """
        check_seconds("timeout", timeout)
        return await read_range(self._connection, self.id, offset, length, timeout)

    async def chunks(
        self, *, offset: int = 0, length: int = 0, timeout: float = VIDEO_SECONDS
    ) -> AsyncGenerator[bytes, None]:
        """Yields a range of the mp4 of a generation that succeeded, as it arrives, by one call.

        Unlike `video` it holds a chunk in memory, not the range. Raises ChorusError (BLOB_CORRUPT) at the end
        of a range of another length. To stop early, close the iterator (`contextlib.aclosing`).

        Args:
            offset, length, timeout: as of `video`.
        """
        check_seconds("timeout", timeout)
        chunks = stream_range(self._connection, self.id, offset, length, timeout)
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def thumbnail(self, *, timeout: float | None = None) -> Thumbnail:
        """Returns a small picture of the video. Raises ChorusError (NOT_FOUND) if it has none."""
        request = scheduler_pb2.GetThumbnailRequest(generation_id=self.id)
        response = await self._connection.call(self._connection.stub.GetThumbnail, request, timeout)
        return Thumbnail.from_proto(response)

    async def url(self, *, lifetime: float | None = None, timeout: float | None = None) -> VideoUrl:
        """Returns a URL of the video for plain HTTP, without the scheduler.

        Raises ChorusError (WRONG_STATE) if the scheduler stores videos in a directory.

        Args:
            lifetime: seconds for which the URL is valid, 1 to 604,800; None: the server's default.
            timeout: deadline of the call, in seconds.
        """
        request = scheduler_pb2.GetVideoUrlRequest(generation_id=self.id)
        if lifetime is not None:
            request.lifetime.FromNanoseconds(round(check_seconds("lifetime", lifetime) * 1e9))
        response = await self._connection.call(self._connection.stub.GetVideoUrl, request, timeout)
        return VideoUrl.from_proto(response)

    async def save(
        self, path: Path | str, *, timeout: float = WATCH_SECONDS, patience: float = PATIENCE_SECONDS
    ) -> Path:
        """Waits for the end and writes the mp4 file atomically. Returns its path.

        A download that breaks continues where it stopped; the digest of the whole is verified.
        """
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
        download = Download(self._connection, self.id)
        while True:
            received = download.received
            pause = min(_MAX_BACKOFF_SECONDS, patience)
            try:
                if succeeded:
                    return await self._fetch_both(download, saved, end - clock())
                generation = await self.status()
                generation.raise_for_state()
                return Video(generation, await download.run(end - clock()), saved)
            except GenerationError:
                raise
            except ChorusError as error:
                if download.received > received:  # it continues where it stopped
                    give_up, pause = min(end, clock() + patience), _FIRST_BACKOFF_SECONDS
                if error.reason not in _RESUMABLE or clock() >= give_up:
                    raise
            await asyncio.sleep(random.uniform(0.5, 1) * pause)

    async def _fetch_both(self, download: Download, saved: float, timeout: float) -> Video:
        """Fetches state and video at the same time: a generation that succeeded has both."""
        downloading = asyncio.create_task(download.run(timeout))
        try:
            generation = await self.status()
            generation.raise_for_state()
            return Video(generation, await downloading, saved)
        finally:
            downloading.cancel()
            await asyncio.wait([downloading])
            if not downloading.cancelled():
                downloading.exception()  # asyncio logs the exception of a task that is never retrieved


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

    def report(self, problem: str, comment: str = "", *, timeout: float | None = None) -> Generation:
        """Stores what is wrong with the video; see AsyncGenerationHandle.report."""
        return self._loop.run(self._handle.report(problem, comment, timeout=timeout))

    def withdraw_report(self, *, timeout: float | None = None) -> Generation:
        """Removes the report; a generation without one is returned unchanged."""
        return self._loop.run(self._handle.withdraw_report(timeout=timeout))

    def change_priority(self, priority: str, *, timeout: float | None = None) -> Generation:
        """Changes the class of a generation that waits; see AsyncGenerationHandle.change_priority."""
        return self._loop.run(self._handle.change_priority(priority, timeout=timeout))

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

    def video(self, *, offset: int = 0, length: int = 0, timeout: float = VIDEO_SECONDS) -> bytes:
        """Returns a range of the mp4; see AsyncGenerationHandle.video."""
        return self._loop.run(self._handle.video(offset=offset, length=length, timeout=timeout))

    def thumbnail(self, *, timeout: float | None = None) -> Thumbnail:
        """Returns a small picture of the video. Raises ChorusError (NOT_FOUND) if it has none."""
        return self._loop.run(self._handle.thumbnail(timeout=timeout))

    def url(self, *, lifetime: float | None = None, timeout: float | None = None) -> VideoUrl:
        """Returns a URL of the video for plain HTTP; see AsyncGenerationHandle.url."""
        return self._loop.run(self._handle.url(lifetime=lifetime, timeout=timeout))

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
        yield from self._iterate(self._handle.events(after_sequence, timeout=timeout, patience=patience))

    def chunks(self, *, offset: int = 0, length: int = 0, timeout: float = VIDEO_SECONDS) -> Iterator[bytes]:
        """Yields a range of the mp4 as it arrives; see AsyncGenerationHandle.chunks."""
        yield from self._iterate(self._handle.chunks(offset=offset, length=length, timeout=timeout))

    def _iterate(self, items: AsyncGenerator[Item, None]) -> Iterator[Item]:
        async def following() -> Item | None:
            return await anext(items, None)

        async def stop() -> None:
            await items.aclose()

        try:
            while (item := self._loop.run(following())) is not None:
                yield item
        finally:
            if self._loop.is_usable:
                self._loop.run(stop())
