"""Start of a service: faults that no wait can cure, and what a start that takes too long waits for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable

from chorus_rpc.addresses import join_host_port

from services.runtime.settings import ServerSettings


class StartupError(Exception):
    """Fault that ends the start of a process. The message names the setting, the cause and the remedy."""


class Progress:
    """What the start of this process waits for; one sentence, empty if nothing was reported."""

    def __init__(self) -> None:
        self.waiting_for = ""


# A process starts once.
progress = Progress()


def name_variable(settings: ServerSettings, field: str) -> str:
    """Returns the environment variable of a setting, for instance CHORUS_CACHE_PORT."""
    return str(settings.model_config.get("env_prefix", "")) + field.upper()


async def limit_start(start: Awaitable[None], settings: ServerSettings) -> None:
    """Awaits the start of a service. Raises StartupError when it takes longer than `startup_seconds`."""
    try:
        async with asyncio.timeout(settings.startup_seconds) as limit:
            await start
    except TimeoutError as error:
        if not limit.expired():
            raise
        detail = f": it still waits for {progress.waiting_for}" if progress.waiting_for else ""
        raise StartupError(
            f"not ready within {settings.startup_seconds:g} s"
            f" ({name_variable(settings, 'startup_seconds')}){detail}"
        ) from error


def find_bind_fault(settings: ServerSettings) -> StartupError:
    """Returns the error of an address that gRPC cannot listen on; gRPC itself does not report the cause."""
    host, port = settings.host, settings.port
    host_variable, port_variable = name_variable(settings, "host"), name_variable(settings, "port")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        return StartupError(f"{host_variable}: {host!r} is no address of this machine: {error.strerror}")
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does: connections that wait for their end do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                probe.listen()
            except PermissionError as error:
                return StartupError(f"{port_variable}: port {port} is not permitted: {error.strerror}")
            except OSError as error:
                return StartupError(
                    f"{host_variable}, {port_variable}: cannot listen on {join_host_port(host, port)}:"
                    f" {error.strerror}; stop the process that uses the address, or choose another"
                )
    return StartupError(f"{host_variable}, {port_variable}: cannot listen on {join_host_port(host, port)}")
