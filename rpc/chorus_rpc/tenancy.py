"""Tenant and key of a call. They come from the channel, never from a request's body.

The scheduler sets the tenant at the edge; the services behind it trust a caller that presents its key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from chorus_rpc.errors import invalid
from chorus_rpc.limits import TENANT_PATTERN
from chorus_rpc.semconv import TENANT_KEY

DEFAULT_TENANT = "default"

_KEY: Final = "authorization"
_SCHEME: Final = "Bearer "


def check_tenant(tenant: str) -> str:
    """Returns `tenant`; raises INVALID_FIELD for an invalid one. Tenants become part of keys and filters."""
    if not re.fullmatch(TENANT_PATTERN, tenant):
        raise invalid(TENANT_KEY, "must be 1 to 63 of a–z, 0–9 and '-', not starting with '-'")
    return tenant


def tenant_metadata(tenant: str, key: str = "") -> tuple[tuple[str, str], ...]:
    """Returns the metadata of a call on behalf of `tenant`.

    Args:
        key: key of the calling service; empty if it has none.
    """
    return ((TENANT_KEY, tenant), *key_metadata(key))


def key_metadata(key: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that carries a key; none for an empty one."""
    return ((_KEY, _SCHEME + key),) if key else ()


def read_key(metadata: Iterable[tuple[str, str | bytes]] | None) -> bytes:
    """Reads the key of a call; empty if it carries none."""
    for name, value in metadata or ():
        if name == _KEY:
            raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
            return raw.removeprefix(_SCHEME.encode()) if raw.startswith(_SCHEME.encode()) else b""
    return b""


def read_tenant(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Reads the tenant of a call from `context.invocation_metadata()`."""
    for key, value in metadata or ():
        if key == TENANT_KEY:
            return check_tenant(value if isinstance(value, str) else value.decode("ascii", "replace"))
    return DEFAULT_TENANT
