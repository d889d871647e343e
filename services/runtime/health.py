"""Probe of another service through its standard gRPC health service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.breaker import PROBE_SECONDS

# Statuses that gRPC itself produces when the peer has sent none.
_UNANSWERED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


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
