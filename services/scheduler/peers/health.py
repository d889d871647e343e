"""Availability of a peer, watched through its standard gRPC health stream.

The stream stays open while the peer's process is stopped or its host unreachable: calls that are not answered
in time show that, and then the peer is probed until it answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import grpc
import grpc.aio
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from chorus_rpc.semconv import VERSION_KEY
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.breaker import Guard
from services.runtime.health import make_probe
from services.runtime.logs import get_logger

log = get_logger("health")

_FIRST_PAUSE = 0.1
_MAX_VERSION = 64


class Peer(Protocol):
    """Service that jobs need, in one or several processes."""

    @property
    def name(self) -> str:
        """Short name, as error messages use it."""

    @property
    def serving(self) -> bool | None:
        """Whether it can be called; None until that is known."""

    def unavailable(self) -> ChorusError:
        """Returns the DEPENDENCY_UNAVAILABLE error that names the peer and the reason."""


class PeerHealth:
    """Availability of one peer.

    Args:
        name: short name of the peer, as error messages use it.
        service: full protobuf name of the watched service.
        on_change: callback after each change of `serving`.
        max_pause: upper bound on the pause between two attempts to reach the peer, in seconds.
        target: its address, for the log.

    Attributes:
        version: its version, of its latest health stream; empty if it names none.
    """

    def __init__(
        self,
        name: str,
        service: str,
        channel: grpc.aio.Channel,
        on_change: Callable[[PeerHealth], None],
        max_pause: float,
        target: str = "",
    ) -> None:
        self.name = name
        # None until the first answer, or the first failure to reach the peer.
        self.serving: bool | None = None
        self.version = ""
        self.target = target
        self._detail = "not reached yet"
        # Availability by the stream alone, in contrast to `serving`.
        self._watched: bool | None = None
        self._guard = Guard(name, make_probe(channel, service), on_change=self._update, max_pause=max_pause)
        self._service = service
        self._channel = channel
        self._on_change = on_change
        self._max_pause = max_pause

    def unavailable(self) -> ChorusError:
        """Returns the DEPENDENCY_UNAVAILABLE error that names the peer and the reason."""
        return (
            self._guard.unavailable() if self._guard.is_open else errors.unavailable(self.name, self._detail)
        )

    def report_silence(self, cause: str) -> None:
        """Marks the peer as unavailable until it answers a probe.

        Args:
            cause: description of the call that was not answered in time.
        """
        self._guard.report_silence(cause)

    async def close(self) -> None:
        """Ends the probes. `watch` ends when it is cancelled."""
        await self._guard.close()

    async def watch(self) -> None:
        """Runs until it is cancelled."""
        pause = _FIRST_PAUSE
        while True:
            try:
                # The channel to a peer that is down reconnects automatically; the call waits for that.
                if await self._follow(wait_for_ready=self._watched is False):
                    pause = _FIRST_PAUSE
                detail = "it is shutting down"
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    # Without a health service only the calls themselves show whether the peer serves.
                    self._set(True, "")
                    await asyncio.Event().wait()
                detail = error.details() or error.code().name
            self._set(False, detail)
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._max_pause)

    async def _follow(self, wait_for_ready: bool) -> bool:
        """Follows one health stream until the peer stops serving; returns whether it served at all."""
        served = False
        # The published type stubs of this package lack Watch.
        stub: Any = health_pb2_grpc.HealthStub(self._channel)
        call = stub.Watch(health_pb2.HealthCheckRequest(service=self._service), wait_for_ready=wait_for_ready)
        try:
            async for reply in call:
                self.version = await _read_version(call)
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    served = True
                    self._set(True, "")
                elif served:
                    # The peer drains: an open stream would delay its exit.
                    return True
                else:
                    self._set(False, "it is still starting")
        finally:
            call.cancel()
        return served

    def _set(self, serving: bool, detail: str) -> None:
        self._detail = detail
        self._watched = serving
        self._update()

    def _update(self) -> None:
        serving = False if self._guard.is_open else self._watched
        if serving == self.serving:
            return
        self.serving = serving
        if serving:
            log.info("service available", peer=self.name, target=self.target)
        else:
            log.warning(
                "service unavailable",
                peer=self.name,
                target=self.target,
                reason=self.unavailable().message,
            )
        self._on_change(self)


async def _read_version(call: Any) -> str:
    """Returns the version that a health stream names, in at most 64 characters; empty if it names none."""
    for name, value in await call.initial_metadata() or ():
        if name == VERSION_KEY and isinstance(value, str):
            return value[:_MAX_VERSION]
    return ""
