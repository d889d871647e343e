"""Who may call the cache: the keys of the services, and the methods that each of them needs.

A service presents its key and asserts the tenant. A cache without keys cannot tell its callers apart, and
serves only the tenants that the settings name.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Literal, TypeAlias

from chorus.cache.v1 import cache_pb2
from chorus_rpc.errors import PERMISSION_DENIED, UNAUTHENTICATED, ChorusError
from chorus_rpc.tenancy import read_key, read_tenant

Role: TypeAlias = Literal["scheduler", "denoiser", "gateway", "operator"]

EVERY_TENANT: Final = "*"
_METHODS: Final = frozenset(cache_pb2.DESCRIPTOR.services_by_name["CacheService"].methods_by_name)
# Only the denoiser admits: latents of anybody else would reach the videos of others.
_ALLOWED: Final[Mapping[Role, frozenset[str]]] = {
    "scheduler": frozenset({"Lookup", "Find"}),
    "denoiser": frozenset({"Fetch", "Admit"}),
    "gateway": frozenset({"Stats", "ListEntries", "MapEntries", "Purge"}),
    "operator": _METHODS - {"Admit"},
}


class Access:
    """Decides who may call.

    Args:
        keys: the key of each role; empty if callers need none.
        keyless_tenants: tenants that are served if callers need no key, or EVERY_TENANT.
    """

    def __init__(self, keys: Mapping[Role, str], keyless_tenants: Collection[str]) -> None:
        self._keys = {role: key.encode() for role, key in keys.items() if key}
        self._keyless_tenants = frozenset(keyless_tenants)

    def check(self, method: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
        """Returns the tenant of a call.

        Raises UNAUTHENTICATED without a valid key, or for a tenant that is not served without one,
        PERMISSION_DENIED for a method that the caller's role does not have, and INVALID_FIELD for a malformed
        tenant.
        """
        pairs: Sequence[tuple[str, str | bytes]] = tuple(metadata or ())
        if not self._keys:
            tenant = read_tenant(pairs)
            if EVERY_TENANT in self._keyless_tenants or tenant in self._keyless_tenants:
                return tenant
            raise ChorusError(
                UNAUTHENTICATED,
                "the cache has no keys and serves only the tenants of CHORUS_CACHE_KEYLESS_TENANTS: add the"
                " tenant there, or set CHORUS_CACHE_SCHEDULER_KEY and CHORUS_CACHE_DENOISER_KEY",
            )
        role = self._find_role(read_key(pairs))
        if role is None:
            raise ChorusError(
                UNAUTHENTICATED,
                'the call carries no key of this cache: send "authorization: Bearer KEY", from'
                " CHORUS_SCHEDULER_CACHE_KEY, CHORUS_DENOISER_CACHE_KEY, CHORUS_GATEWAY_CONSOLE_CACHE_KEY or,"
                " for `chorus cache`, CHORUS_CACHE_OPERATOR_KEY",
            )
        if method not in _ALLOWED[role]:
            raise ChorusError(PERMISSION_DENIED, f"the key of the {role} does not allow {method}")
        return read_tenant(pairs)

    def _find_role(self, key: bytes) -> Role | None:
        """Compares with every key, in a time that does not depend on where they differ."""
        found: Role | None = None
        for role, expected in self._keys.items():
            if hmac.compare_digest(key, expected):
                found = role
        return found
