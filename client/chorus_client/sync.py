"""The same client without asyncio: every call blocks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from chorus.scheduler.v1.scheduler_pb2 import Generation, GenerationEvent
from chorus_rpc.errors import ChorusError

from chorus_client.aio import (
    CALL_SECONDS,
    PATIENCE_SECONDS,
    WATCH_SECONDS,
    AsyncChorusClient,
    Video,
)
from chorus_client.spec import SpecOptions

T = TypeVar("T")


class ChorusClient:
    """`AsyncChorusClient` on an event loop of its own, in a thread that `close` ends.

    Methods, arguments and errors are those of the asyncio client. Not to be called from inside an event loop.
    An interrupt (Ctrl-C) cancels the call it meets, and so, in `generate`, the generation.
    """

    def __init__(self, target: str, *, call_seconds: float = CALL_SECONDS) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chorus-client", daemon=True)
        self._thread.start()
        self._closed = False

        async def make() -> AsyncChorusClient:
            return AsyncChorusClient(target, call_seconds=call_seconds)

        self._client = self._run(make())
        self.target = target

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel and ends the thread. May be called twice."""
        if self._closed:
            return
        self._closed = True
        try:
            asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def submit(self, prompt: str, **options: Unpack[SpecOptions]) -> Generation:
        return self._run(self._client.submit(prompt, **options))

    def get(self, generation_id: str) -> Generation:
        return self._run(self._client.get(generation_id))

    def cancel(self, generation_id: str) -> Generation:
        return self._run(self._client.cancel(generation_id))

    def list(self, state: str | None = None, limit: int = 50) -> tuple[Generation, ...]:
        return self._run(self._client.list(state, limit))

    def watch(
        self,
        generation_id: str,
        after_sequence: int = 0,
        *,
        timeout: float = WATCH_SECONDS,
        patience: float = PATIENCE_SECONDS,
    ) -> Iterator[GenerationEvent]:
        events = self._client.watch(generation_id, after_sequence, timeout=timeout, patience=patience)

        async def following() -> GenerationEvent | None:
            return await anext(events, None)

        async def leave() -> None:
            await events.aclose()

        try:
            while (event := self._run(following())) is not None:
                yield event
        finally:
            if not self._closed:
                self._run(leave())

    def video(self, generation_id: str) -> bytes:
        return self._run(self._client.video(generation_id))

    def save_video(self, generation_id: str, path: Path | str) -> Path:
        return self._run(self._client.save_video(generation_id, path))

    def generate(
        self,
        prompt: str,
        *,
        timeout: float = WATCH_SECONDS,
        on_accepted: Callable[[Generation], None] | None = None,
        on_event: Callable[[GenerationEvent], None] | None = None,
        **options: Unpack[SpecOptions],
    ) -> Video:
        """As the asyncio client's; the callbacks run in the client's own thread."""
        return self._run(
            self._client.generate(
                prompt, timeout=timeout, on_accepted=on_accepted, on_event=on_event, **options
            )
        )

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._closed:
            work.close()
            raise RuntimeError("this client is closed")
        tasks: list[asyncio.Task[Any] | None] = []

        async def tracked() -> T:
            tasks.append(asyncio.current_task())
            return await work

        future: Future[T] = asyncio.run_coroutine_threadsafe(tracked(), self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            # Cancelled through its task, not the future, so that its clean-up can be waited for.
            for task in tasks:
                if task is not None:
                    self._loop.call_soon_threadsafe(task.cancel)
            with contextlib.suppress(CancelledError, ChorusError):
                future.result()
            raise
