"""Who visits a page, and whether a form is the visitor's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from chorus_client import AsyncChorusClient
from chorus_rpc.errors import UNAUTHENTICATED, ChorusError
from fastapi import Depends, Request

from services.gateway.console.sessions import COOKIE, Session, Sessions
from services.gateway.errors import ApiError
from services.gateway.security.origins import is_own_origin, names_loopback
from services.gateway.settings import GatewaySettings
from services.gateway.videos.bodies import make_charset_error

_MAX_FIELDS: Final = 40
_SAFE_SITES: Final = frozenset({"", "same-origin", "none"})


@dataclass(frozen=True)
class Visitor:
    """A browser with its session.

    Attributes:
        fresh: whether the session begins with this request, so that the answer must carry its cookie.
    """

    session: Session
    form_token: str
    fresh: bool

    @property
    def has_key(self) -> bool:
        return self.session.key is not None


def get_visitor(request: Request) -> Visitor:
    """Returns the visitor, whether logged in or not."""
    sessions: Sessions = request.app.state.sessions
    found = sessions.read(request.cookies.get(COOKIE, ""))
    session = found or sessions.create()
    return Visitor(session, sessions.make_form_token(session), fresh=found is None)


def get_user_client(request: Request, visitor: Annotated[Visitor, Depends(get_visitor)]) -> AsyncChorusClient:
    """Returns the client of the scheduler with the visitor's API key.

    Raises ChorusError (UNAUTHENTICATED) without a key if one is required, and ApiError (403) if a visitor
    without a key names the host by anything but loopback: a page of another site may have redirected the
    name.
    """
    settings: GatewaySettings = request.app.state.settings
    client: AsyncChorusClient = request.app.state.client
    if not visitor.has_key:
        if settings.require_keys:
            raise ChorusError(UNAUTHENTICATED, "log in with an API key")
        if not names_loopback(request.headers.get("host", "")):
            raise ApiError(
                403,
                "key_required",
                "without API keys the console is open on the machine itself only: use http://localhost, or"
                " set CHORUS_GATEWAY_REQUIRE_KEYS",
            )
    return client.with_token(visitor.session.key)


async def read_form(request: Request, visitor: Annotated[Visitor, Depends(get_visitor)]) -> Mapping[str, str]:
    """Returns the fields of a form. Raises ApiError (403) for a form that another site sent."""
    origin = request.headers.get("origin")
    foreign = origin is not None and not is_own_origin(origin, request.headers.get("host", ""))
    if foreign or request.headers.get("sec-fetch-site", "") not in _SAFE_SITES:
        raise _refuse_form()
    try:
        async with request.form(max_files=0, max_fields=_MAX_FIELDS) as form:
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
    except UnicodeError:
        raise make_charset_error() from None
    sessions: Sessions = request.app.state.sessions
    if not sessions.accepts(visitor.session, fields.pop("form_token", "")):
        raise _refuse_form()
    return fields


def _refuse_form() -> ApiError:
    return ApiError(
        403, "form_refused", "the form is not of this session, or the session has ended: load the page again"
    )


Visit = Annotated[Visitor, Depends(get_visitor)]
User = Annotated[AsyncChorusClient, Depends(get_user_client)]
Form = Annotated[Mapping[str, str], Depends(read_form)]
