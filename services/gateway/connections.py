"""Connections of clients: the time in which a first request must arrive, and a close that does not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

_ABORT: Final = "chorus.abort"


class Connection(H11Protocol):
    """Closes a connection whose first request does not arrive in time. uvicorn bounds only the time between
    two.

    Attributes:
        header_seconds: that time, in seconds; set by `make_protocol`.
    """

    header_seconds = 20.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        inner: Any = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            self._deadline.cancel()
            scope[_ABORT] = transport.abort
            await inner(scope, receive, send)

        self.app = app
        self._deadline = self.loop.call_later(self.header_seconds, self._close_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def _close_silent(self) -> None:
        if self.cycle is None:
            self.transport.abort()


def make_protocol(header_seconds: float) -> type[Connection]:
    """Returns the protocol of a server.

    Args:
        header_seconds: time from the connection to its first request, in seconds.
    """
    return type("BoundConnection", (Connection,), {"header_seconds": header_seconds})


def abort(scope: Scope) -> None:
    """Closes the connection of a request at once, without sending what its client has not read."""
    close: Callable[[], None] = scope.get(_ABORT, partial(_ignore))
    close()


def _ignore() -> None:
    """Does nothing: a server of another kind, as in a test, owns the connection."""
