"""Proxies that the environment names: never for loopback addresses, nor between services."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import MutableMapping

# Variables that name the hosts reached without a proxy: of most libraries, and of gRPC.
_EXEMPTIONS = ("no_proxy", "NO_PROXY", "no_grpc_proxy")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(target: str) -> bool:
    """Returns whether a gRPC target is on this machine: a loopback address, localhost or a Unix socket.

    A connection to the unspecified address (0.0.0.0 or ::) also ends on this machine.
    """
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    address = re.sub(r"^(dns|ipv4|ipv6):(//[^/]*/)?", "", target)
    host = re.sub(r":\d+$", "", address).strip("[]").removesuffix(".").lower()
    try:
        ip = ipaddress.ip_address(host)
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return ip.is_loopback or ip.is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def exempt_loopback(environment: MutableMapping[str, str]) -> None:
    """Adds the loopback addresses to the hosts that libraries reach without a proxy, in place."""
    for variable in _EXEMPTIONS:
        # An empty no_grpc_proxy or NO_PROXY would hide no_proxy.
        if variable != "no_proxy" and not environment.get(variable):
            continue
        hosts = [host.strip() for host in environment.get(variable, "").split(",") if host.strip()]
        if hosts == ["*"]:
            continue  # every host is exempt; urllib knows the wildcard only where it stands alone
        environment[variable] = ",".join([*hosts, *(host for host in _LOOPBACK if host not in hosts)])
