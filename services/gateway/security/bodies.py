"""Bound on the body of a request: its bytes, and the time in which it must arrive."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.errors import ApiError, make_response

# Size up to which a body that is too large is read before it is refused, as a multiple of the bound.
_DISCARDED: Final = 4


class BodyLimit:
    """Refuses bodies that are too large or too slow.

    Args:
        limit: upper bound on a body, in bytes.
        seconds: time from the start of the request in which its body must arrive.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        end = asyncio.get_running_loop().time() + self._seconds
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > self._limit:
            await self._refuse(int(length), scope, receive, send, end)
            return
        received, complete = 0, False

        async def receive_within_limit() -> Message:
            nonlocal received, complete
            if complete:  # waits for the end of the connection, however long it lasts
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408,
                    "request_timeout",
                    f"the body did not arrive within {self._seconds:g} s (CHORUS_GATEWAY_BODY_SECONDS)",
                    headers={"Connection": "close"},
                ) from None
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large()
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        await self._app(scope, receive_within_limit, send)

    async def _refuse(self, length: int, scope: Scope, receive: Receive, send: Send, end: float) -> None:
        """Answers 413. A body that is not much too large is read first: a client that still sends may not see
        an answer that closes its connection."""
        if length <= _DISCARDED * self._limit:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(end):
                    while (await receive()).get("more_body", False):
                        pass
        await make_response(self._too_large())(scope, receive, send)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            "body_too_large",
            f"the body must have at most {self._limit} bytes (CHORUS_GATEWAY_MAX_BODY_BYTES)",
            headers={"Connection": "close"},
        )
