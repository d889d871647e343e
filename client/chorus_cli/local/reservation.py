"""Reservation of ports among several `chorus up` that start at the same time.

A port is bound only once its service has started; until then another start would find it free.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Collection, Mapping

from chorus_rpc.errors import invalid


def reserve_ports(
    ports: Mapping[str, int], requested: Collection[str], reserved: contextlib.ExitStack
) -> dict[str, int]:
    """Returns the ports, with free ones in place of those that another `chorus up` has reserved.

    Args:
        ports: chosen port of each service.
        requested: services whose ports are not to be replaced.
        reserved: holds the reservations until it is closed.

    Raises ChorusError (INVALID_FIELD) for a requested port that is reserved.
    """
    chosen: dict[str, int] = {}
    for service, port in ports.items():
        while not _reserve(port, reserved):
            if service in requested:
                raise invalid(
                    f"CHORUS_{service.upper()}_PORT", f"port {port} is in use by another `chorus up`"
                )
            port = _find_free_port()
        chosen[service] = port
    return chosen


def _reserve(port: int, reserved: contextlib.ExitStack) -> bool:
    """Reserves a port; returns False if another process has. Without abstract sockets nothing is reserved."""
    if sys.platform != "linux":
        return True
    holder = reserved.enter_context(socket.socket(socket.AF_UNIX))
    try:
        # An abstract name: it exists in the same network namespace as the port, and ends with the process.
        holder.bind(f"\0chorus-up-port-{port}")
    except OSError:
        return False
    return True


def _find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
