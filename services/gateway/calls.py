"""Every request: its number at once, its trace, its measurement, and the time in which a client must read."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Final

from chorus_rpc import semconv, telemetry
from fastapi.telemetry import TelemetryConfig
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.connections import abort
from services.gateway.errors import INTERNAL_MESSAGE, ApiError, make_response
from services.gateway.health import PATH, Health
from services.runtime.logs import get_logger
from services.runtime.metrics import OTHER, create_histogram

log = get_logger("http")

_HTTP_SECONDS = create_histogram(
    semconv.METRIC_HTTP, "Duration of a request that the gateway answered, of a stream to its end."
)
# `Calls` traces and measures each request. The framework would do so again, with queries in its spans.
NO_TELEMETRY: Final[TelemetryConfig] = {"tracing": False, "metrics": False, "logs": False}
_METHODS: Final = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class SlowReader(Exception):
    """A client did not read its response in time."""


class ResponseBroken(Exception):
    """A response that has begun cannot be completed; the message says why."""


class Calls:
    """Layer of the application around every request, and outside of every error.

    Args:
        limit: upper bound on concurrent requests.
        send_seconds: time in which a client must read a part of a response, in seconds.
    """

    def __init__(self, app: ASGIApp, limit: int, send_seconds: float, health: Health) -> None:
        self._app = app
        self._limit = limit
        self._send_seconds = send_seconds
        self._health = health
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] != "http" or scope["path"] == PATH:
            await self._app(scope, receive, send)
        elif self._running >= self._limit:
            await make_response(
                ApiError(
                    503,
                    "overloaded",
                    f"{self._limit} requests are being answered (CHORUS_GATEWAY_MAX_CONCURRENT_CALLS);"
                    " try again later",
                    retry_after=1.0,
                )
            )(scope, receive, send)
        else:
            self._running += 1
            try:
                await self._answer(scope, receive, send)
            finally:
                self._running -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        parent = _find_header(scope, b"traceparent")
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        name = semconv.SPAN_HTTP.format(method=method)
        begin, status = time.perf_counter(), 0
        with telemetry.span(name, parent=parent if _TRACEPARENT.fullmatch(parent) else None) as span:
            request_id = telemetry.current_trace_id() or uuid.uuid4().hex

            async def send_in_time(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    message["headers"] = [*message["headers"], *_headers(request_id)]
                try:
                    async with asyncio.timeout(self._send_seconds):
                        await send(message)
                except TimeoutError:
                    abort(scope)
                    raise SlowReader from None

            try:
                await self._app(scope, receive, send_in_time)
            except SlowReader:
                log.info("connection of a slow reader closed", seconds=self._send_seconds)
            except ClientDisconnect:
                status = 0  # it went before its body was complete, and gets no response
            except ResponseBroken as error:
                log.warning("response broke off", error=str(error), request_id=request_id)
                abort(scope)
            except asyncio.CancelledError:  # the time of the drain has passed
                if status != 0:
                    raise
                message = "the gateway ends; send the request again"
                await make_response(ApiError(503, "shutting_down", message, retry_after=1.0))(
                    scope, receive, send_in_time
                )
            except Exception:
                # The application has answered with the envelope and raised the cause again.
                log.exception("request failed", method=scope["method"], request_id=request_id)
                if status == 0:
                    await make_response(ApiError(500, "internal", INTERNAL_MESSAGE))(
                        scope, receive, send_in_time
                    )
                elif status != 500:
                    abort(scope)  # so that the client does not wait for the rest
            finally:
                route = _describe_route(scope)
                span.set_attribute("http.request.method", scope["method"])
                span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", status)
                # 499: the client had gone before the response began.
                attributes = {semconv.METHOD: route, semconv.CODE: str(status or 499)}
                _HTTP_SECONDS.record(time.perf_counter() - begin, attributes)


def _headers(request_id: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]


def _find_header(scope: Scope, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")


def _describe_route(scope: Scope) -> str:
    """Returns the method and the template of the route, such as "GET /v1/videos/{video_id}"; never an id."""
    path = getattr(scope.get("route"), "path", "")
    path = scope.get("root_path", "") + path if path else ""  # of an application that is mounted
    return f"{scope['method']} {path}" if path and scope["method"] in _METHODS else OTHER
