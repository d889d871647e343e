"""Check of the address that a server is to listen on, before the server exists.

gRPC reports only that binding failed, and binds a part of the addresses of a host name if others are taken.
"""

from __future__ import annotations

import errno
import socket

from services.runtime.settings import ServerSettings

_TAKEN = (errno.EADDRINUSE, errno.EACCES, errno.EPERM)


class CannotListen(Exception):
    """Failure to listen; the message names the address and the setting."""


def check_address(settings: ServerSettings, port: int | None = None, port_name: str = "PORT") -> None:
    """Raises CannotListen unless a server can listen on the host of the settings.

    Args:
        port: port to check; None for that of the settings.
        port_name: name of the port's setting.
    """
    prefix = type(settings).model_config.get("env_prefix", "")
    host, port = settings.host, settings.port if port is None else port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotListen(f"{prefix}HOST: {host} cannot be resolved: {error.strerror}") from error
    faults = [fault for entry in found if (fault := _find_fault(*entry))]
    taken = next((fault for fault in faults if fault.errno in _TAKEN), None)
    if taken is not None or len(faults) == len(found):
        raise CannotListen(
            describe_fault(
                taken or faults[0],
                host,
                port,
                host_variable=f"{prefix}HOST",
                port_variable=f"{prefix}{port_name}",
            )
        )


def describe_fault(fault: OSError, host: str, port: int, *, host_variable: str, port_variable: str) -> str:
    """Returns why an address cannot be listened on, with the setting to change."""
    if fault.errno in _TAKEN:
        reason = "in use" if fault.errno == errno.EADDRINUSE else "not open to this user"
        return f"{port_variable}: port {port} of {host} is {reason}; choose another one"
    return f"{host_variable}: {host} is not an address of this machine: {fault.strerror}"


def _find_fault(
    family: int, kind: int, protocol: int, _: str, address: tuple[str | bytes | int, ...]
) -> OSError | None:
    """Returns the error of binding one address, or None."""
    try:
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does: connections that a previous process closed do not keep a port in use.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None
