"""URLs of receivers: https, with a host and nothing that a log or another host must not see."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from chorus_rpc.limits import MAX_WEBHOOK_URL_CHARACTERS

from services.scheduler.webhook_addresses import IpAddress, parse_address

_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
# A last label that resolvers read as part of an IPv4 address, as in 127.1 or 0x7f000001.
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_BRACKETED: Final = re.compile(r"\[[^\[\]]*\](:[0-9]+)?")
_DEFAULT_PORT: Final = 443


class InvalidUrl(ValueError):
    """Fault of a URL; the message completes "spec.webhook.url: …" and contains no part of the URL."""


@dataclass(frozen=True)
class ReceiverUrl:
    """A URL that has passed validation.

    Attributes:
        host: host name in lower case, or IP address without brackets.
        target: path with query, as it is requested.
    """

    host: str
    port: int
    target: str

    @property
    def address(self) -> IpAddress | None:
        """The host as an IP address; None for a name."""
        return parse_address(self.host)

    @property
    def authority(self) -> str:
        """Host and port as in the Host header; without path and query, it may be logged."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT else f"{host}:{self.port}"


def parse_url(url: str) -> ReceiverUrl:
    """Returns the parts of a URL. Raises InvalidUrl with the bound and the remedy."""
    if not 1 <= len(url) <= MAX_WEBHOOK_URL_CHARACTERS:
        raise InvalidUrl(f"must have 1 to {MAX_WEBHOOK_URL_CHARACTERS:,} characters, not {len(url):,}")
    if not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        raise InvalidUrl(
            "must be printable ASCII without spaces and backslashes: write other characters of the path as"
            " %XX, and a host name in its xn-- form"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").lower()
    except ValueError:
        raise InvalidUrl("must be https://HOST[:PORT]/PATH with a port of 1 to 65535") from None
    if parts.scheme.lower() != "https":
        raise InvalidUrl("must begin with https://: the request is sent over TLS only")
    if "@" in parts.netloc:
        raise InvalidUrl("must contain no user or password: verify the signature instead")
    if "#" in url:
        raise InvalidUrl("must contain no fragment (#…), which is never sent")
    if port == 0 or parts.netloc.endswith(":"):
        raise InvalidUrl("must be https://HOST[:PORT]/PATH with a port of 1 to 65535")
    if "[" in parts.netloc:
        # urlsplit leaves out what follows the brackets.
        valid = _BRACKETED.fullmatch(parts.netloc) is not None and parse_address(host) is not None
    else:
        number = _NUMBER.fullmatch(host.rpartition(".")[2]) is not None
        valid = parse_address(host) is not None or (bool(_HOST_NAME.fullmatch(host)) and not number)
    if not valid:
        raise InvalidUrl(
            "must name a host: a DNS name without a dot at its end, an IPv4 address such as 192.0.2.1, or an"
            " IPv6 address in brackets"
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return ReceiverUrl(host, port or _DEFAULT_PORT, target)
