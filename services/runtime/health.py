"""Health of this process, and the probe of another one, through the standard gRPC health service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from chorus_rpc.semconv import INSTANCE_KEY, VERSION_KEY
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.runtime.breaker import PROBE_SECONDS

# Statuses that gRPC itself produces when the peer has sent none.
_UNANSWERED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


class HealthServicer(health.aio.HealthServicer):
    """Health service that names its process, so that a supervisor does not take another one for it, and its
    version.

    Args:
        instance_id: id sent in the trailing metadata of each check; empty to send none.
        version: version sent in the initial metadata of each watch; empty to send none.
    """

    def __init__(self, instance_id: str, version: str = "") -> None:
        super().__init__()
        self._instance_id = instance_id
        self._version = version

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        if self._instance_id:
            context.set_trailing_metadata(((INSTANCE_KEY, self._instance_id),))
        return await super().Check(request, context)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        if self._version:
            await context.send_initial_metadata(((VERSION_KEY, self._version),))
        await super().Watch(request, context)


def make_probe(channel: grpc.aio.Channel, service: str) -> Callable[[], Awaitable[None]]:
    """Returns a probe that raises unless the peer answers, whatever its health.

    A peer that does not serve refuses calls at once, which costs their callers nothing.
    """
    stub: Any = health_pb2_grpc.HealthStub(channel)

    async def probe() -> None:
        try:
            await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PROBE_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() in _UNANSWERED:
                raise

    return probe
