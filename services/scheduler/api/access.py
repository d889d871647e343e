"""Who may call the scheduler, and for which tenant."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from chorus_rpc.api_keys import find_key, format_time
from chorus_rpc.errors import UNAUTHENTICATED, ChorusError
from chorus_rpc.tenancy import read_key

from services.scheduler.api.key_file import KeyFile


class Access:
    """Finds the tenant of a call by its API key.

    Args:
        key_file: keys in force; None if callers need none.
        tenant: tenant of every call if callers need no key.
        clock: returns the time, with its zone.
    """

    def __init__(
        self, key_file: KeyFile | None, tenant: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._key_file = key_file
        self._tenant = tenant
        self._clock = clock

    @property
    def has_keys(self) -> bool:
        """Whether callers need a key."""
        return self._key_file is not None

    def find_tenant(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
        """Returns the tenant of a call. Raises UNAUTHENTICATED without a key that is in force.

        That a key has expired or is revoked is reported to its holder only.
        """
        if self._key_file is None:
            return self._tenant
        token = read_key(metadata)
        if not token:
            raise ChorusError(
                UNAUTHENTICATED,
                'the call carries no API key: send "authorization: Bearer KEY" (token= in the SDK, --token or'
                " CHORUS_TOKEN on the command line)",
            )
        key = find_key(self._key_file.keys, token)
        if key is None:
            raise ChorusError(UNAUTHENTICATED, "the API key is not one of this scheduler")
        if key.revoked is not None:
            raise ChorusError(UNAUTHENTICATED, f"the API key {key.id} is revoked")
        if key.state(self._clock()) != "active":
            assert key.expires is not None
            raise ChorusError(UNAUTHENTICATED, f"the API key {key.id} expired at {format_time(key.expires)}")
        return key.tenant
