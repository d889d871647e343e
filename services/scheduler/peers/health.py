"""Which of the services that a job needs are there, told by their own health streams: nothing is polled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.logs import get_logger

log = get_logger("dependencies")

_FIRST_PAUSE = 0.1


class Dependency:
    """One service and whether it serves.

    Args:
        name: short, as error messages call it.
        service: full protobuf name, whose health is watched.
        on_change: called when `serving` changed.
        max_pause: seconds, the longest between two tries to reach it.
    """

    def __init__(
        self,
        name: str,
        service: str,
        channel: grpc.aio.Channel,
        on_change: Callable[[Dependency], None],
        max_pause: float,
    ) -> None:
        self.name = name
        # None until the service, or its absence, was seen for the first time.
        self.serving: bool | None = None
        self.detail = "not reached yet"
        self._service = service
        self._channel = channel
        self._on_change = on_change
        self._max_pause = max_pause

    def missing(self) -> ChorusError:
        return errors.unavailable(self.name, self.detail)

    async def watch(self) -> None:
        """Runs until it is cancelled."""
        pause = _FIRST_PAUSE
        while True:
            try:
                # Once it is known to be away, the channel reconnects by itself and the call waits for that.
                if await self._follow(wait_for_ready=self.serving is False):
                    pause = _FIRST_PAUSE
                detail = "it is shutting down"
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    # No health service there: only its calls can tell.
                    self._set(True, "")
                    return
                detail = error.details() or error.code().name
            self._set(False, detail)
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._max_pause)

    async def _follow(self, wait_for_ready: bool) -> bool:
        """Follows one health stream until the service stops serving; returns whether it served at all."""
        served = False
        # The types published for this package know no Watch.
        stub: Any = health_pb2_grpc.HealthStub(self._channel)
        call = stub.Watch(health_pb2.HealthCheckRequest(service=self._service), wait_for_ready=wait_for_ready)
        try:
            async for reply in call:
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    served = True
                    self._set(True, "")
                elif served:
                    # It drains: an open stream would hold it up.
                    return True
                else:
                    self._set(False, "it is still starting")
        finally:
            call.cancel()
        return served

    def _set(self, serving: bool, detail: str) -> None:
        self.detail = detail
        if serving == self.serving:
            return
        self.serving = serving
        log.log(20 if serving else 30, "service is back" if serving else "service is away", name=self.name)
        self._on_change(self)
