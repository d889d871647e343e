"""Connections of the commands to the scheduler and to the cache."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from chorus_client import endpoints
from chorus_client.aio import AsyncChorusClient
from chorus_client.cache import AsyncCacheClient
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError


@asynccontextmanager
async def connect_scheduler(target: str | None) -> AsyncIterator[AsyncChorusClient]:
    """Opens a client of the scheduler at `target`, or at the default address if it is None."""
    address = endpoints.resolve("scheduler", target)
    with explaining_silence("scheduler", address, "CHORUS_TARGET"):
        async with AsyncChorusClient(address) as client:
            yield client


@asynccontextmanager
async def connect_cache(target: str | None, tenant: str) -> AsyncIterator[AsyncCacheClient]:
    """Opens a client of the cache at `target`, or at the default address if it is None."""
    address = endpoints.resolve("cache", target)
    with explaining_silence("cache", address, "CHORUS_CACHE_TARGET"):
        async with AsyncCacheClient(address, tenant) as client:
            yield client


@contextmanager
def explaining_silence(service: str, address: str, variable: str) -> Iterator[None]:
    """Replaces the error of a service that does not answer by one that says how to start it."""
    try:
        yield
    except ChorusError as error:
        # A service further behind, such as the denoiser, is named by the scheduler's own answer.
        if error.reason != errors.DEPENDENCY_UNAVAILABLE or error.metadata.get("service") != service:
            raise
        raise ChorusError(
            error.reason,
            f"nothing answers at {address}: start one with `chorus up`, or pass --target / {variable}",
            metadata=error.metadata,
        ) from error
