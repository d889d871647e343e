"""Addresses of sockets as text. An IPv6 address is written in brackets in front of a port: "[::1]:7400"."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

# A scheme of gRPC; "dns:7400" is port 7400 of a host named dns.
_SCHEME: Final = re.compile(r"(dns|unix|unix-abstract|ipv4|ipv6|vsock|xds):(?!\d+$)")
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,253})")


def parse_host(text: str) -> str:
    """Returns a host name or an IP address; an IPv6 address may be in brackets, and is returned without them.

    Raises ValueError for anything else, such as an address with a port.
    """
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(inner)
    except ValueError:
        if not _HOST_NAME.fullmatch(text):
            raise ValueError(
                "must be a host name or an IP address without a port, for instance 127.0.0.1 or ::"
            ) from None
        return text
    if address.version == 4 and inner != text:
        raise ValueError("must have brackets around an IPv6 address only")
    return inner


def join_host_port(host: str, port: int) -> str:
    """Returns "host:port" for a result of `parse_host`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_wildcard(host: str) -> bool:
    """Returns whether a server at this address listens on all addresses of its machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def is_loopback_host(host: str) -> bool:
    """Returns whether a server at this address can be reached from its own machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_target(text: str) -> str:
    """Returns the gRPC name of "host:port", which DNS resolves; a name with a scheme is returned as it is.

    Raises ValueError for a URL, and for an IPv6 address without brackets: where its port begins is ambiguous.
    """
    if _SCHEME.match(text):
        return text
    if "://" in text:
        raise ValueError(f"must be host:port, without the scheme of a URL, not {text!r}")
    if text.count(":") > 1 and not text.startswith("["):
        raise ValueError(f"must have brackets around an IPv6 address, for instance [::1]:7400, not {text!r}")
    return f"dns:///{text}"
