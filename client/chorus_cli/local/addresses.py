"""Addresses at which the services of `chorus up` listen, and at which this machine reaches them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from typing import Final

from chorus_client import endpoints
from chorus_rpc.addresses import is_wildcard, join_host_port, parse_host
from chorus_rpc.errors import invalid

SERVICES: Final = ("embedder", "cache", "denoiser", "scheduler", "gateway")
# Those whose port speaks HTTP, not gRPC.
HTTP_SERVICES: Final = ("gateway",)
HOST: Final = "127.0.0.1"
DEFAULT_PORTS: Final = {
    service: int(target.rpartition(":")[2]) for service, target in endpoints.DEFAULT_TARGETS.items()
}


def choose_hosts(base: Mapping[str, str]) -> dict[str, str]:
    """Returns the address at which each service listens: `CHORUS_<SERVICE>_HOST`, else loopback.

    Raises ChorusError (INVALID_FIELD) for a variable that is not a host name or an IP address.
    """
    hosts: dict[str, str] = {}
    for service in SERVICES:
        variable = f"CHORUS_{service.upper()}_HOST"
        try:
            hosts[service] = parse_host(base.get(variable, HOST))
        except ValueError as error:
            raise invalid(variable, f"{error}, not {base[variable]!r}") from None
    return hosts


def reach(host: str) -> str:
    """Returns the address at which this machine reaches a server that listens at `host`."""
    return HOST if is_wildcard(host) else host


def build_targets(base: Mapping[str, str], ports: Mapping[str, int]) -> dict[str, str]:
    """Returns "host:port" of each service, as this machine reaches it."""
    hosts = choose_hosts(base)
    return {service: join_host_port(reach(hosts[service]), ports[service]) for service in SERVICES}


def choose_ports(base: Mapping[str, str]) -> dict[str, int]:
    """Chooses a port for each service: `CHORUS_<SERVICE>_PORT`, else its default port, else a free one.

    Raises ChorusError (INVALID_FIELD) for a variable that is not a port, or that names the port of another
    service or one in use, whose program would answer the health check.
    """
    ports: dict[str, int] = {}
    hosts = choose_hosts(base)
    for service, host in hosts.items():
        with contextlib.ExitStack() as bound:
            if bind_port(bound, 0, host) is None:
                raise invalid(f"CHORUS_{service.upper()}_HOST", f"{host} is not an address of this machine")
    for service in SERVICES:
        variable = f"CHORUS_{service.upper()}_PORT"
        text = base.get(variable)
        if text is None:
            continue
        if not (text.isdecimal() and 1 <= int(text) <= 65_535):
            raise invalid(variable, f"must be a port, 1 to 65535, not {text!r}")
        if int(text) in ports.values():
            raise invalid(variable, f"must differ from the ports of the other services, not be {text}, too")
        ports[service] = int(text)
    with contextlib.ExitStack() as bound:  # all at once, so that they differ
        for service, port in ports.items():
            if bind_port(bound, port, hosts[service]) is None:
                variable = f"CHORUS_{service.upper()}_PORT"
                raise invalid(
                    variable, f"port {port} of {hosts[service]} is in use, or not open to this user"
                )
        for service in SERVICES:
            if service not in ports:
                default, host = DEFAULT_PORTS[service], hosts[service]
                free = None if default in ports.values() else bind_port(bound, default, host)
                ports[service] = free or bind_port(bound, 0, host) or 0
    return ports


def bind_port(bound: contextlib.ExitStack, port: int, host: str = HOST) -> int | None:
    """Binds a port until the end of `bound`; 0 selects a free one. Returns it, or None if it is in use."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        holder = bound.enter_context(socket.socket(family, kind, protocol))
        # As gRPC does: connections that a previous run closed do not keep a port in use.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(address)
    except OSError:
        return None
    found: int = holder.getsockname()[1]
    return found


def describe_moved_ports(base: Mapping[str, str], ports: Mapping[str, int]) -> list[str]:
    """Returns a line for each service whose default port was in use."""
    targets = build_targets(base, ports)
    return [
        f"port {default} is in use: the {service} listens at {targets[service]}"
        for service, default in DEFAULT_PORTS.items()
        if f"CHORUS_{service.upper()}_PORT" not in base and ports[service] != default
    ]
