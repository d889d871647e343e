"""Health of the services of `chorus up`: by gRPC, and by HTTP for the gateway."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Mapping
from typing import Any, Final

import grpc
from chorus_rpc.channels import open_channel
from chorus_rpc.semconv import INSTANCE_KEY
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chorus_cli.local.addresses import HTTP_SERVICES
from chorus_cli.local.supervise import Child

_HEALTH_SECONDS: Final = 2.0


class Health:
    """Health checks of the services at their addresses.

    Args:
        targets: "host:port" of each service, by name.
    """

    def __init__(self, targets: Mapping[str, str]) -> None:
        self._targets = dict(targets)
        self._channels = {
            service: open_channel(target)
            for service, target in targets.items()
            if service not in HTTP_SERVICES
        }

    async def __aenter__(self) -> Health:
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def serves(self, child: Child) -> bool:
        """Returns whether the child itself answers and serves, not another process at its address."""
        instance: object
        if child.name in HTTP_SERVICES:
            instance = await asyncio.to_thread(_ask_http, self._targets[child.name])
        else:
            instance = await _ask_grpc(self._channels[child.name])
        return instance == child.environment[f"CHORUS_{child.name.upper()}_INSTANCE_ID"]


async def _ask_grpc(channel: grpc.aio.Channel) -> object:
    """Returns the instance id of a service that serves; None for another one."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    call = stub.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS)
    try:
        answer, metadata = await call, await call.trailing_metadata()
    except grpc.RpcError:
        return None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        return None
    return dict(metadata).get(INSTANCE_KEY)


def _ask_http(target: str) -> str | None:
    """Returns the instance id of a service that serves; None for another one. Blocks."""
    connection = http.client.HTTPConnection(target, timeout=_HEALTH_SECONDS)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        return response.headers.get(INSTANCE_KEY) if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
