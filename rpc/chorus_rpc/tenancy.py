"""Tenant of a request. It comes from the channel, never from a request's body.

The scheduler sets it at the edge; the services behind it trust that metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from chorus_rpc.errors import invalid
from chorus_rpc.limits import TENANT_PATTERN
from chorus_rpc.semconv import TENANT_KEY

DEFAULT_TENANT = "default"


def check_tenant(tenant: str) -> str:
    """Returns `tenant`; raises INVALID_FIELD for an invalid one. Tenants become part of keys and filters."""
    if not re.fullmatch(TENANT_PATTERN, tenant):
        raise invalid(TENANT_KEY, "must be 1 to 63 of a–z, 0–9 and '-', not starting with '-'")
    return tenant


def tenant_metadata(tenant: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of a call on behalf of `tenant`."""
    return ((TENANT_KEY, tenant),)


def read_tenant(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Reads the tenant of a call from `context.invocation_metadata()`."""
    for key, value in metadata or ():
        if key == TENANT_KEY:
            return check_tenant(value if isinstance(value, str) else value.decode("ascii", "replace"))
    return DEFAULT_TENANT
