"""Connections of clients: the time in which a request must arrive, and a close that does not wait."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any, Final

import h11
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.gateway.errors import ApiError, build_body

_ABORT: Final = "chorus.abort"


class Connection(H11Protocol):
    """Closes a connection if the head of a request does not arrive in time.

    uvicorn bounds only the time without any byte between two requests.

    Attributes:
        header_seconds: that time, in seconds; set by `make_protocol`.
    """

    header_seconds = 20.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            # asyncio does so only for sockets that state their protocol, which accepted ones do not. Without
            # it the body of a response waits for the client's delayed acknowledgement of the headers: 40 ms.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        inner: Any = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            self._disarm()
            scope[_ABORT] = transport.abort
            await inner(scope, receive, send)

        self.app = app
        self._arm()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_idle():
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are not HTTP with the envelope of every error."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # An answer, which has begun or is complete, precedes these bytes.
            if self._is_idle():
                self.transport.close()
            else:
                self.transport.abort()
            return
        error = ApiError(400, "invalid_http", "the bytes sent are not a valid HTTP request")
        body = json.dumps(build_body(error)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _is_idle(self) -> bool:
        """Returns whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _arm(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.header_seconds, self._close_if_idle)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close_if_idle(self) -> None:
        self._deadline = None
        if self._is_idle():
            self.transport.abort()


def make_protocol(header_seconds: float) -> type[Connection]:
    """Returns the protocol of a server.

    Args:
        header_seconds: time in which the head of a request must arrive, in seconds.
    """
    return type("BoundConnection", (Connection,), {"header_seconds": header_seconds})


def abort(scope: Scope) -> None:
    """Closes the connection of a request at once, without sending what its client has not read.

    A server of another kind, as in a test, owns its connections; then it does nothing.
    """
    close: Callable[[], None] | None = scope.get(_ABORT)
    if close is not None:
        close()
