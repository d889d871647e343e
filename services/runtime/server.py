"""Life cycle of a service process: bind, load, serve, drain."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Final, cast

import grpc
import grpc.aio
from chorus_rpc.addresses import join_host_port
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.runtime.health import HealthServicer
from services.runtime.interceptors import Gate, ServiceInterceptor
from services.runtime.logs import get_logger
from services.runtime.process import run_process
from services.runtime.resources import EssentialTaskEnded, Resources
from services.runtime.settings import ServerSettings
from services.runtime.startup import limit_start
from services.runtime.version import VERSION

# Runs once the port is bound: loads what the service needs, registers every resource with the stack and adds
# the servicer to the server. Calls are refused with UNAVAILABLE until it returns.
Start = Callable[[Resources, grpc.aio.Server], Awaitable[None]]
# Called when a drain begins, before it waits for running calls: ends background work that has no end.
Drain = Callable[[], Awaitable[None]]

log = get_logger("server")

# Shortest permitted interval between two pings of a client. Clients and proxies commonly ping each 10 s, and
# a ping that the network delays shortens the interval to the next. gRPC closes the connection at the third
# ping that is earlier (GOAWAY, too_many_pings).
PING_INTERVAL_SECONDS: Final = 5.0


class _StartedServer:
    """Adapter that lets generated code add a servicer to a server that already runs.

    Generated code also registers every method by name, which gRPC allows before the start only and warns
    about; the generic handlers serve the same methods.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: object) -> None:
        """Ignores the handlers, for the reason given in the class."""


def run(
    name: str,
    service: str,
    settings: ServerSettings,
    start: Start,
    drain: Drain | None = None,
    *,
    credentials: grpc.ServerCredentials | None = None,
    health_port: int = 0,
    public: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT; returns after the drain.

    Ends the process with status 1, after a drain, when an essential task of `start` has ended.

    Args:
        name: short name, for instance "cache".
        service: full protobuf name, for instance "chorus.cache.v1.CacheService".
        credentials: credentials of the port for TLS; None for a plaintext port.
        health_port: plaintext port for health checks alone, the setting HEALTH_PORT; 0 for none.
        public: whether strangers may reach the port. To them the health service does not name the version.

    Ends the process with status 1 and one line on stderr when the address cannot be listened on, when `start`
    raises StartupError, or when it takes longer than `startup_seconds`; with status 2 when an `OTEL_*`
    variable cannot be honoured.
    """

    def serve(open_metrics_port: Callable[[Resources], None]) -> Awaitable[None]:
        async def start_all(resources: Resources, server: grpc.aio.Server) -> None:
            open_metrics_port(resources)
            await start(resources, server)

        return _serve(name, service, settings, start_all, drain, credentials, health_port, public)

    run_process(name, settings, serve, health_port=health_port)


def build_server_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Returns the gRPC options of every server."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", int(PING_INTERVAL_SECONDS * 1_000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # With it, two processes on one port would each receive half of the calls.
        ("grpc.so_reuseport", 0),
    ]


async def _serve(
    name: str,
    service: str,
    settings: ServerSettings,
    start: Start,
    drain: Drain | None,
    credentials: grpc.ServerCredentials | None,
    health_port: int,
    public: bool,
) -> None:
    gate = Gate(name)
    server = grpc.aio.server(
        interceptors=[ServiceInterceptor(gate, settings.call_seconds)],
        maximum_concurrent_rpcs=settings.max_concurrent_calls,
        options=build_server_options(settings.max_message_bytes),
    )
    status = HealthServicer(settings.instance_id, "" if public else VERSION)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    await status.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
    await status.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    reflection.enable_server_reflection((service, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = join_host_port(settings.host, settings.port)
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    running = cast(grpc.aio.Server, _StartedServer(server))
    log.info("port bound", host=settings.host, port=port, tls=credentials is not None)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    async with Resources() as resources:
        if health_port:
            health_server = await _serve_health(status, settings, health_port)
            resources.push_async_callback(health_server.stop, None)
        loading = asyncio.ensure_future(limit_start(start(resources, running), settings))
        stopping = asyncio.ensure_future(stop.wait())
        serving = False
        try:
            ends = (stopping, resources.ended_task)
            await asyncio.wait((loading, *ends), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                serving = True
                gate.open()
                await status.set(service, health_pb2.HealthCheckResponse.SERVING)
                await status.set("", health_pb2.HealthCheckResponse.SERVING)
                log.info("serving", host=settings.host, port=port)
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                log.info("draining", seconds=settings.drain_seconds)
        finally:
            gate.drain()
            await status.enter_graceful_shutdown()
            for task in (loading, stopping):
                task.cancel()
            try:
                if drain is not None:
                    await drain()
            finally:
                # Before the process serves, only health streams are open; they do not delay its end.
                await server.stop(settings.drain_seconds if serving else None)
        if resources.ended_task.done():
            raise EssentialTaskEnded(resources.ended_task.result())
    log.info("stopped")


async def _serve_health(status: HealthServicer, settings: ServerSettings, port: int) -> grpc.aio.Server:
    """Starts a server of the health service alone, on a plaintext port."""
    server = grpc.aio.server(
        maximum_concurrent_rpcs=settings.max_concurrent_calls,
        options=build_server_options(settings.max_message_bytes),
    )
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    server.add_insecure_port(join_host_port(settings.host, port))
    await server.start()
    return server
