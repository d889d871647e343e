"""Addresses to which webhooks may be sent: public ones, and those that a setting allows in addition."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from chorus_rpc.addresses import parse_host

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# IANA's special-purpose registry, multicast, and the rest above it: no receiver on the internet has these.
_SPECIAL_IPV4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # a public address, at which Azure serves each of its machines
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# Of IPv6 only the global unicast addresses are public, without the special ones among them.
_GLOBAL_IPV6: Final = ipaddress.IPv6Network("2000::/3")
_SPECIAL_IPV6: Final = tuple(
    ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "3fff::/20")
)
# Prefixes in front of an IPv4 address, and the number of bits behind it: what they reach is that address.
_MAPPED: Final = (ipaddress.IPv6Network("::ffff:0:0/96"), 0)
_NAT64: Final = (ipaddress.IPv6Network("64:ff9b::/96"), 0)
_SIX_TO_FOUR: Final = (ipaddress.IPv6Network("2002::/16"), 80)


def parse_address(text: str) -> IpAddress | None:
    """Returns an IP address; None for any other text, such as an address with the name of an interface."""
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


def unwrap(address: IpAddress) -> IpAddress:
    """Returns the IPv4 address in an IPv4-mapped, NAT64 or 6to4 address; any other address unchanged."""
    if isinstance(address, ipaddress.IPv6Address):
        for network, shift in (_MAPPED, _NAT64, _SIX_TO_FOUR):
            if address in network:
                return ipaddress.IPv4Address(int(address) >> shift & 0xFFFF_FFFF)
    return address


def is_public(address: IpAddress) -> bool:
    """Returns whether an address is one of the internet, by the address that it contains if it wraps one."""
    address = unwrap(address)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_IPV4)
    return address in _GLOBAL_IPV6 and not any(address in network for network in _SPECIAL_IPV6)


@dataclass(frozen=True)
class AddressRules:
    """Decides where webhooks may be sent.

    Attributes:
        networks: networks whose addresses are allowed in addition to the public ones.
        hosts: host names, in lower case, of which every address is allowed.
    """

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    def allows(self, host: str, address: IpAddress) -> bool:
        """Returns whether a request to a host may be sent to this address of it.

        Args:
            host: as in `ReceiverUrl`.
        """
        inner = unwrap(address)
        return (
            host in self.hosts
            or is_public(address)
            or any(each in network for each in (address, inner) for network in self.networks)
        )


def parse_rules(entries: Iterable[str]) -> AddressRules:
    """Returns the rules of entries such as "10.1.0.0/16", "::1" and "hooks.internal".

    Raises ValueError for an entry of another form.
    """
    networks: list[Network] = []
    hosts = set()
    for entry in entries:
        try:
            networks.append(ipaddress.ip_network(entry))
        except ValueError as error:
            if "/" in entry:
                raise ValueError(f"{entry!r} is no network such as 10.1.0.0/16: {error}") from None
            try:
                hosts.add(parse_host(entry).lower())
            except ValueError:
                raise ValueError(f"{entry!r} must be a network such as 10.1.0.0/16, or a host name") from None
    return AddressRules(tuple(networks), frozenset(hosts))
