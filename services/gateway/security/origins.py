"""Whether a page of another site, which a browser shows on this machine, may have sent a request."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from chorus_rpc.addresses import is_loopback_host
from starlette.datastructures import Headers

from services.gateway.errors import ApiError


def names_loopback(host: str) -> bool:
    """Returns whether the header Host names this machine itself.

    With another name a browser may show a page of another site, whose name server answers with this machine's
    address after the page has been loaded.
    """
    try:
        return is_loopback_host(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def is_own_origin(origin: str, host: str) -> bool:
    """Returns whether a page of this origin came from the host that its request names."""
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


def refuse_foreign_pages(headers: Headers, origins: Collection[str], *, local: bool) -> None:
    """Raises ApiError (403) for a request that a page of another site may have sent.

    It protects an API that is open without keys: a browser sends forms of every page to it, whose sender does
    not see the answer, and with a redirected name a page reads the answers, too.

    Args:
        origins: origins whose pages may call the API.
        local: whether only programs of this machine call the API.
    """
    host, origin = headers.get("host"), headers.get("origin")
    if local and host is not None and not names_loopback(host):
        raise ApiError(
            403,
            "host_refused",
            "without API keys the API is open to this machine itself only: use http://localhost or an address"
            " such as 127.0.0.1, or set CHORUS_GATEWAY_REQUIRE_KEYS or CHORUS_GATEWAY_TRUSTED_NETWORK",
        )
    if origin is None or origin in origins or headers.get("sec-fetch-site") == "same-origin":
        return
    if not is_own_origin(origin, host or ""):
        raise ApiError(
            403,
            "origin_refused",
            f"pages of {origin[:128]!r} may not call this API: add the origin to CHORUS_GATEWAY_CORS_ORIGINS",
        )
