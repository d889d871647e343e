"""Life cycle of the gateway: bind, connect to the scheduler, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import uvicorn
from chorus_client import AsyncCacheClient, AsyncChorusClient, ChorusError
from chorus_rpc import errors
from chorus_rpc.addresses import is_wildcard
from chorus_rpc.tenancy import key_metadata

from services.gateway.app import create_app
from services.gateway.connections import make_protocol
from services.gateway.health import Health
from services.gateway.settings import GatewaySettings
from services.runtime import startup
from services.runtime.address import CannotListen, describe_fault
from services.runtime.logs import get_logger
from services.runtime.resources import EssentialTaskEnded, Resources
from services.runtime.startup import StartupError, limit_start, name_variable

log = get_logger("server")

# Pause between two attempts to ask the scheduler at the start, in seconds.
_ASK_SECONDS: Final = 1.0


class HttpServer(uvicorn.Server):
    """Server whose process handles signals itself, and ends with status 0 after a drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def create_client(settings: GatewaySettings) -> AsyncChorusClient:
    """Creates the client of the scheduler; its calls carry the keys of the callers. The caller closes it.

    Raises StartupError if a file of its TLS cannot be used.
    """
    try:
        return AsyncChorusClient(
            settings.scheduler_target,
            tls=settings.scheduler_files,
            allow_plaintext_token=settings.allow_plaintext_keys,
            timeout=settings.call_seconds,
            use_proxy=False,
            max_message_bytes=settings.max_message_bytes,
        )
    except ChorusError as error:
        raise StartupError(f"the connection to the scheduler cannot be set up: {error.message}") from error


def create_cache_client(settings: GatewaySettings) -> AsyncCacheClient | None:
    """Creates the client of the cache for the console, if the settings name one. The caller closes it."""
    if not (settings.console and settings.console_cache_target):
        return None
    return AsyncCacheClient(
        settings.console_cache_target,
        settings.console_cache_tenant,
        metadata=key_metadata(settings.console_cache_key.get_secret_value()),
        timeout=settings.call_seconds,
        use_proxy=False,
    )


async def serve(settings: GatewaySettings, open_metrics_port: Callable[[Resources], None]) -> None:
    """Serves until SIGTERM or SIGINT; returns after the drain. Raises EssentialTaskEnded, StartupError."""
    # Its warnings are about what clients send, who could fill the log with them.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Resources() as resources:
        listener = resources.enter_context(listen(settings))
        port = listener.getsockname()[1]
        log.info("port bound", host=settings.host, port=port, tls=settings.tls is not None)
        client = create_client(settings)
        resources.push_async_callback(client.close)
        cache = create_cache_client(settings)
        if cache is not None:
            resources.push_async_callback(cache.close)
        open_metrics_port(resources)
        starting = asyncio.ensure_future(limit_start(_check_keys(settings, client), settings))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return
            starting.result()
            await _serve_until(stopping, resources, settings, client, listener, cache)
        finally:
            for task in (starting, stopping):
                task.cancel()
    log.info("stopped")


async def _serve_until(
    stopping: asyncio.Future[Any],
    resources: Resources,
    settings: GatewaySettings,
    client: AsyncChorusClient,
    listener: socket.socket,
    cache: AsyncCacheClient | None,
) -> None:
    health = Health(settings.instance_id)
    server = HttpServer(configure(settings, create_app(settings, client, health, cache)))
    serving = asyncio.create_task(server.serve([listener]))
    log.info("serving", host=settings.host, port=listener.getsockname()[1])
    try:
        await asyncio.wait((serving, stopping, resources.ended_task), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            log.critical("HTTP server ended; this process ends", exc_info=serving.exception())
            raise EssentialTaskEnded("HTTP server")
        log.info("draining", seconds=settings.drain_seconds)
    finally:
        health.draining.set()
        server.should_exit = True
        await asyncio.wait([serving])
    if resources.ended_task.done():
        raise EssentialTaskEnded(resources.ended_task.result())


def configure(settings: GatewaySettings, app: object) -> uvicorn.Config:
    """Returns the configuration of the HTTP server."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # an application of FastAPI is one of ASGI
        http=make_protocol(settings.header_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        ssl_certfile=settings.tls_certificate or None,
        ssl_keyfile=settings.tls_key or None,
    )


def listen(settings: GatewaySettings) -> socket.socket:
    """Binds the port of the settings; the caller closes the socket. Raises CannotListen."""
    host, port = settings.host, settings.port
    try:
        # Either wildcard is all addresses of both families, as for a gRPC port.
        if is_wildcard(host) and socket.has_dualstack_ipv6():
            listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise CannotListen(
            describe_fault(
                error,
                host,
                port,
                host_variable=name_variable(settings, "host"),
                port_variable=name_variable(settings, "port"),
            )
        ) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Ends the connection of a client that does not read the rest of a response, also after its last part.
        milliseconds = int(settings.send_seconds * 1_000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


async def _check_keys(settings: GatewaySettings, client: AsyncChorusClient) -> None:
    """Waits for the scheduler if requests need keys. Raises StartupError if the scheduler has no keys."""
    if not settings.require_keys:
        return
    anonymous = client.with_token(None)
    while True:
        try:
            await anonymous.models()
        except ChorusError as error:
            if error.reason == errors.UNAUTHENTICATED:
                return
            startup.progress.waiting_for = f"the scheduler: {error.message}"
        else:
            raise StartupError(
                "CHORUS_GATEWAY_REQUIRE_KEYS is true, but the scheduler answers calls without an API key: set"
                " CHORUS_SCHEDULER_API_KEYS, too"
            )
        await asyncio.sleep(_ASK_SECONDS)
