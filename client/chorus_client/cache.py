"""What an operator does with a cache: look at it, empty it. Generations never need this."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from chorus.cache.v1.cache_pb2 import PurgeRequest, PurgeResponse, StatsRequest, StatsResponse
from chorus.cache.v1.cache_pb2_grpc import CacheServiceStub
from chorus_rpc.channels import calling, open_channel
from chorus_rpc.errors import invalid
from chorus_rpc.limits import MAX_AGE_SECONDS
from chorus_rpc.tenancy import DEFAULT_TENANT, check_tenant, tenant_metadata

CALL_SECONDS: Final = 30.0
PURGE_SECONDS: Final = 300.0


class AsyncCacheClient:
    """Statistics and purge of one tenant's entries. Errors as in `AsyncChorusClient`.

    Args:
        target: the cache's "host:port", or any gRPC name.
        tenant: whose entries.
    """

    def __init__(self, target: str, tenant: str = DEFAULT_TENANT) -> None:
        self._metadata = tenant_metadata(check_tenant(tenant))
        self._channel = open_channel(target)
        self._stub = CacheServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def stats(self) -> StatsResponse:
        with calling("cache"):
            return await self._stub.Stats(StatsRequest(), timeout=CALL_SECONDS, metadata=self._metadata)

    async def purge(
        self,
        *,
        entry: str | None = None,
        model: str | None = None,
        older_than: float | None = None,
        everything: bool = False,
    ) -> PurgeResponse:
        """Drops the entries that match everything that is given; `older_than` in seconds.

        Raises ChorusError (INVALID_FIELD) when nothing is given: a purge of all is asked for by name.
        """
        if not (entry or model or older_than is not None or everything):
            raise invalid("purge", "say what: an entry, a model, an age, or all")
        request = PurgeRequest(entry_id=entry or "", model_id=model or "", all=everything)
        if older_than is not None:
            if not 0 <= older_than <= MAX_AGE_SECONDS:
                raise invalid("older_than", f"must be 0 to {MAX_AGE_SECONDS:g} seconds, not {older_than:g}")
            request.older_than.FromMilliseconds(int(older_than * 1000))
        with calling("cache"):
            return await self._stub.Purge(request, timeout=PURGE_SECONDS, metadata=self._metadata)
