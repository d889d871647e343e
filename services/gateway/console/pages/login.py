"""Login by API key, and logout."""

from __future__ import annotations

from chorus_client import AsyncChorusClient
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from services.gateway.console.paths import BASE, HOME, check_next
from services.gateway.console.rendering import render, set_session
from services.gateway.console.sessions import MAX_KEY_CHARACTERS, Sessions
from services.gateway.console.visitor import Form, Visit

router = APIRouter()


@router.get("/login")
async def show_login(request: Request, visitor: Visit, next: str = HOME) -> Response:
    """Shows the form that asks for a key."""
    return render(request, visitor, "login.html", next=check_next(next), fault="")


@router.post("/login")
async def log_in(request: Request, visitor: Visit, form: Form) -> Response:
    """Starts a session with a key that the scheduler accepts."""
    following, key = check_next(form.get("next", "")), form.get("key", "").strip()
    client: AsyncChorusClient = request.app.state.client
    fault = ""
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        fault = f"A key has 1 to {MAX_KEY_CHARACTERS} characters."
    else:
        try:
            await client.with_token(key).models()
            if await _serves_everyone(client):
                fault = "The scheduler has no API keys, so that a key opens nothing: use http://localhost."
        except ChorusError as error:
            if error.reason not in (errors.UNAUTHENTICATED, errors.INVALID_FIELD):
                raise
            fault = "The scheduler does not accept this key."
    if fault:
        return render(request, visitor, "login.html", status=401, next=following, fault=fault)
    sessions: Sessions = request.app.state.sessions
    response = RedirectResponse(following, 303)
    set_session(request, response, sessions.create(key))
    return response


@router.post("/logout")
async def log_out(request: Request, form: Form) -> Response:
    """Ends the session of this browser."""
    sessions: Sessions = request.app.state.sessions
    response = RedirectResponse(f"{BASE}/login", 303)
    set_session(request, response, sessions.create())
    return response


async def _serves_everyone(client: AsyncChorusClient) -> bool:
    """Returns whether the scheduler answers calls without a key; then it accepts any key."""
    try:
        await client.with_token(None).models()
    except ChorusError as error:
        if error.reason != errors.UNAUTHENTICATED:
            raise
        return False
    return True
