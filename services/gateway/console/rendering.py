"""Pages from templates, and the headers of every answer."""

from __future__ import annotations

from collections.abc import MutableMapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.console.paths import BASE
from services.gateway.console.sessions import COOKIE, SESSION_SECONDS, Session, Sessions
from services.gateway.console.views.numbers import format_bytes, format_seconds, format_share
from services.gateway.console.visitor import Visitor
from services.gateway.settings import GatewaySettings
from services.gateway.videos.identifiers import format_video_id

FOLDER: Final = Path(__file__).parent
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    b"content-security-policy": _POLICY.encode(),
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"x-frame-options": b"DENY",
}


def _format_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def create_environment() -> Environment:
    """Creates the environment of the templates, which escapes every value."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["base"] = BASE
    environment.filters.update(
        seconds=format_seconds,
        bytes=format_bytes,
        share=format_share,
        time=_format_time,
        video_id=format_video_id,
    )
    return environment


def render(
    request: Request, visitor: Visitor, template: str, *, status: int = 200, **values: Any
) -> HTMLResponse:
    """Returns a page; values are those of its template. The first answer of a session carries its cookie."""
    environment: Environment = request.app.state.environment
    text = environment.get_template(template).render(
        visitor=visitor, path=request.url.path, here=_describe_here(request), **values
    )
    response = HTMLResponse(text, status, {"Cache-Control": "no-store"})
    if visitor.fresh:
        set_session(request, response, visitor.session)
    return response


def set_session(request: Request, response: Response, session: Session) -> None:
    """Adds the cookie of a session to an answer."""
    sessions: Sessions = request.app.state.sessions
    settings: GatewaySettings = request.app.state.settings
    response.set_cookie(
        COOKIE,
        sessions.write(session),
        max_age=SESSION_SECONDS,
        path=BASE,
        secure=settings.tls is not None,
        httponly=True,
        samesite="lax",
    )


def _describe_here(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


class Headers:
    """Adds the headers that keep a page to itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add(message)
                if "/static/" in scope["path"]:  # otherwise browsers may keep those of an earlier version
                    message["headers"].append((b"cache-control", b"no-cache"))
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _add(message: MutableMapping[str, Any]) -> None:
    message["headers"] = [*message["headers"], *_HEADERS.items()]
