"""Connections of the commands to the scheduler and to the cache."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from chorus_client import AsyncCacheClient, AsyncChorusClient, ChorusError
from chorus_client.connection import hint_at_tls
from chorus_client.endpoints import VARIABLES
from chorus_rpc import errors
from chorus_rpc.tenancy import key_metadata

from chorus_cli.server_command import get_protection
from chorus_cli.variables import OPERATOR_KEY


@asynccontextmanager
async def connect_scheduler(target: str | None) -> AsyncIterator[AsyncChorusClient]:
    """Opens a client of the scheduler at `target`, or at the default address if it is None.

    The connection is protected as the options of the running ServerCommand say.
    """
    protection = get_protection()
    with _naming_options("scheduler"):
        async with AsyncChorusClient(
            target,
            token=protection.token,
            tls=protection.tls,
            allow_plaintext_token=protection.allow_plaintext_token,
        ) as client:
            yield client


@asynccontextmanager
async def connect_cache(target: str | None, tenant: str) -> AsyncIterator[AsyncCacheClient]:
    """Opens a client of the cache at `target`, or at the default address if it is None.

    Presents the key of CHORUS_CACHE_OPERATOR_KEY, if there is one.
    """
    key = os.environ.get(OPERATOR_KEY, "")
    with _naming_options("cache"):
        async with AsyncCacheClient(target, tenant, metadata=key_metadata(key)) as client:
            yield client


@contextmanager
def _naming_options(service: str) -> Iterator[None]:
    """Adds the options of the command line to the error of a service that does not answer."""
    try:
        yield
    except ChorusError as error:
        # Only the client itself reports the target: a service behind it, such as the denoiser, has none.
        target = error.metadata.get("target")
        if error.reason != errors.DEPENDENCY_UNAVAILABLE or target is None or "tls" in error.metadata:
            raise
        remedy = f"start one with `chorus up`, or pass --target / {VARIABLES[service]}{hint_at_tls(target)}"
        raise ChorusError(
            error.reason,
            f"nothing answers at {target}: {remedy}",
            metadata=error.metadata,
            retry_after=error.retry_after,
        ) from error
