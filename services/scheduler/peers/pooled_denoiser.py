"""One of several denoisers: its connection, its models, and the runs on it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Final

from chorus.denoiser.v1 import denoiser_pb2
from chorus.denoiser.v1.denoiser_pb2 import ModelInfo
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.runtime.resources import Resources
from services.scheduler.jobs.caller import Caller
from services.scheduler.peers.denoiser import DenoiserClient

log = get_logger("denoisers")

# Pause of a denoiser after its first failure, doubled after each further one, in seconds.
_FIRST_PAUSE: Final = 0.1
# Upper bound on a server-requested retry delay, in seconds.
_MAX_SERVER_PAUSE: Final = 30.0
# Time after a crash during which a denoiser is selected last, in seconds.
_SUSPECT_SECONDS: Final = 60.0
# Number of models whose latest run on a denoiser is remembered.
_MAX_MODELS: Final = 64


class PooledDenoiser:
    """A denoiser of the pool, which creates and closes it.

    Args:
        resources: channel, health watch and tasks of the client.
        max_pause: upper bound on the pause after a failure, in seconds.

    Attributes:
        models: models of its latest answer by id; None before the first.
        described: whether it has answered since it serves.
        fault: reason why it has not; empty if it was not asked.
        running: number of jobs that hold a slot.
        leaving: whether it is no longer among the addresses, and gets no further run.
    """

    def __init__(
        self,
        address: str,
        client: DenoiserClient,
        resources: Resources,
        max_pause: float,
    ) -> None:
        self.address = address
        self.models: Mapping[str, ModelInfo] | None = None
        self.described = False
        self.fault = ""
        self.running = 0
        self.leaving = False
        self._client = client
        self._resources = resources
        self._max_pause = max_pause
        self._health_changed = asyncio.Event()
        self._streams = 0
        self._failures = 0  # since the latest success
        self._rest_end = self._suspect_end = 0.0  # monotonic seconds
        self._last_runs: OrderedDict[str, int] = OrderedDict()

    @property
    def name(self) -> str:
        """Short name, as error messages use it."""
        return self._client.health.name

    @property
    def version(self) -> str:
        """Version that its health stream names; empty if it names none."""
        return self._client.health.version

    @property
    def serving(self) -> bool | None:
        """Whether its health is SERVING; None until that is known."""
        return self._client.health.serving

    @property
    def ready(self) -> bool:
        """Whether it serves models that are known."""
        return self.serving is True and self.described and not self.leaving

    @property
    def undecided(self) -> bool:
        """Whether it is not known yet if it is ready."""
        return self.serving is None or (self.serving and not self.described and not self.fault)

    @property
    def idle(self) -> bool:
        """Whether no run and no stream needs its connection."""
        return not self.running and not self._streams

    @property
    def suspect(self) -> bool:
        """Whether it crashed during a run lately."""
        return self._suspect_end > time.monotonic()

    def unavailable(self) -> ChorusError:
        """Returns the DEPENDENCY_UNAVAILABLE error of a denoiser that is not ready."""
        health = self._client.health
        return errors.unavailable(health.name, self.fault) if self.serving else health.unavailable()

    def note_health_change(self) -> None:
        """Requires another answer before the next run: when it serves again it may have other models."""
        self.described = False
        self.fault = ""
        self._rest_end = 0.0
        self._health_changed.set()

    async def follow_models(self, on_answer: Callable[[bool], None]) -> None:
        """Requests its models whenever it has begun to serve, until it answers. Runs until it is cancelled.

        Args:
            on_answer: receives whether the request succeeded.
        """
        pause = _FIRST_PAUSE
        while True:
            self._health_changed.clear()
            limit = None
            if self.serving and not self.described:
                try:
                    await self.describe()
                    pause = _FIRST_PAUSE
                except ChorusError as error:
                    log.warning("models not received", denoiser=self.address, error=error.message)
                    limit, pause = pause, min(2 * pause, self._max_pause)
                on_answer(limit is None)
            with suppress(TimeoutError):
                async with asyncio.timeout(limit):
                    await self._health_changed.wait()

    async def describe(self) -> None:
        """Requests its models. Raises ChorusError."""
        try:
            reply = await self._client.describe_models()
            if not reply.models:
                raise errors.unavailable(self._client.health.name, "it serves no model yet")
        except ChorusError as error:
            self.fault = error.message
            raise
        self.models = {model.model_id: model for model in reply.models}
        # The answer of a process that has ended meanwhile does not count.
        self.described = not self._health_changed.is_set()
        self.fault = ""

    def reserve(self, model_id: str, number: int) -> None:
        """Takes a slot for a run.

        Args:
            number: number of the run, counted over all denoisers.
        """
        self.running += 1
        self._last_runs[model_id] = number
        self._last_runs.move_to_end(model_id)
        if len(self._last_runs) > _MAX_MODELS:
            self._last_runs.popitem(last=False)

    def release(self) -> None:
        """Returns the slot of a run."""
        self.running -= 1

    def last_run(self, model_id: str) -> int:
        """Returns the number of its latest run of a model; 0 if none is known."""
        return self._last_runs.get(model_id, 0)

    def rest_seconds(self) -> float:
        """Returns the time until the next run may start on it, in seconds."""
        return max(0.0, self._rest_end - time.monotonic())

    def report_success(self) -> None:
        self._failures = 0
        self._suspect_end = 0.0

    def report_failure(self, cause: ChorusError, crashed: bool) -> None:
        """Pauses it after a failed run: for the time that it requests, or a longer time after each failure.

        Args:
            crashed: whether it died while it worked on the job.
        """
        if cause.reason == errors.QUEUE_FULL and cause.retry_after:
            seconds = min(cause.retry_after, _MAX_SERVER_PAUSE)
        else:
            seconds = min(_FIRST_PAUSE * 2**self._failures, self._max_pause)
            self._failures = min(self._failures + 1, 16)
        now = time.monotonic()
        self._rest_end = max(self._rest_end, now + seconds)
        if crashed:
            self._suspect_end = now + _SUSPECT_SECONDS

    async def pause(self, generation_id: str, caller: Caller) -> None:
        """Ends a run at its next step, as `DenoiserClient.pause` does."""
        await self._client.pause(generation_id, caller)

    async def denoise(
        self, request: denoiser_pb2.DenoiseRequest, caller: Caller
    ) -> AsyncGenerator[denoiser_pb2.DenoiseResponse, None]:
        """Yields the replies of one run, as `DenoiserClient.denoise` does."""
        self._streams += 1
        try:
            async with aclosing(self._client.denoise(request, caller)) as replies:
                async for reply in replies:
                    yield reply
        finally:
            self._streams -= 1

    async def close(self) -> None:
        """Closes its connection."""
        await self._resources.aclose()
