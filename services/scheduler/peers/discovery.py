"""Addresses of the denoisers: those of the setting, and those that its names have in DNS."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from chorus_rpc.addresses import join_host_port, parse_host

from services.runtime.logs import get_logger

log = get_logger("discovery")

# Upper bound on the number of denoisers.
MAX_DENOISERS: Final = 256
# Upper bound on one query, in seconds.
_QUERY_SECONDS: Final = 5.0
# A name whose addresses are denoisers each. gRPC itself resolves one that states a server ("dns://SERVER/…").
_NAME: Final = re.compile(r"dns:(?:///)?(?!/)(?P<host>.+):(?P<port>\d+)")

# Returns the addresses of a host, with its port. Raises OSError or TimeoutError.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Returns the addresses of a host in order, with its port.

    All are of one family, as a host with IPv4 and IPv6 is one denoiser. Raises OSError or TimeoutError.
    """
    async with asyncio.timeout(_QUERY_SECONDS):
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family = found[0][0]
    addresses = {str(address[0]) for kind, *_, address in found if kind == family}
    return sorted(join_host_port(address, port) for address in addresses)


class Discovery:
    """Finds the addresses of the denoisers.

    Args:
        targets: "host:port" or any gRPC name for one denoiser; "dns:///host:port" for those that the host's
            addresses are.

    Attributes:
        changes: whether the addresses may change.
        fault: reason why a name has no addresses, as of the latest query; empty if each has.
    """

    def __init__(self, targets: Sequence[str], resolve: Resolve = resolve_host) -> None:
        self._targets = targets
        self._resolve = resolve
        self._names = {target: match for target in targets if (match := _NAME.fullmatch(target))}
        self._known: dict[str, Sequence[str]] = {}
        self._faults: dict[str, str] = {}
        self._truncated = False
        self.changes = bool(self._names)

    @property
    def fault(self) -> str:
        return "; ".join(self._faults[name] for name in self._names if name not in self._known)

    async def find(self) -> Sequence[str]:
        """Returns the addresses, each once, in the order of the targets.

        A name that cannot be resolved keeps its addresses: DNS that fails stops no denoiser.
        """
        await asyncio.gather(*map(self._query, self._names))
        found = [each for target in self._targets for each in self._addresses_of(target)]
        addresses = list(dict.fromkeys(found))
        if len(addresses) > MAX_DENOISERS and not self._truncated:
            log.warning(
                "too many denoisers: only the first are used", found=len(addresses), used=MAX_DENOISERS
            )
        self._truncated = len(addresses) > MAX_DENOISERS
        return addresses[:MAX_DENOISERS]

    def _addresses_of(self, target: str) -> Sequence[str]:
        return self._known.get(target, ()) if target in self._names else (target,)

    async def _query(self, target: str) -> None:
        match = self._names[target]
        try:
            host = parse_host(match["host"])
            self._known[target] = await self._resolve(host, int(match["port"]))
        except (OSError, ValueError) as error:
            fault = f"{target} cannot be resolved: {str(error) or 'no answer in time'}"
            if self._faults.get(target) != fault:
                log.warning("denoisers not found", error=fault)
            self._faults[target] = fault
        else:
            if self._faults.pop(target, None):
                log.info("denoisers found again", target=target)
