"""The application of the console, which the gateway mounts."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from chorus_client import AsyncCacheClient, AsyncChorusClient
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from services.gateway.calls import NO_TELEMETRY
from services.gateway.console.pages import cache, gallery, health, login, queue, studio, video
from services.gateway.console.paths import BASE, HOME
from services.gateway.console.rendering import FOLDER, Headers, create_environment, render
from services.gateway.console.sessions import Sessions
from services.gateway.console.visitor import get_visitor
from services.gateway.errors import INTERNAL_MESSAGE, ApiError, from_chorus
from services.gateway.health import Health
from services.gateway.settings import GatewaySettings

_TITLES: Final = {403: "Not permitted", 404: "Not found", 409: "Not possible now", 503: "Not available"}


def create_console(
    settings: GatewaySettings,
    client: AsyncChorusClient,
    cache_client: AsyncCacheClient | None,
    health_state: Health,
    version: str,
) -> FastAPI:
    """Creates the application, to be mounted at BASE.

    Args:
        client: client of the scheduler; its owner closes it.
        cache_client: client of the cache; None if the settings do not name one. Its owner closes it.
        health_state: state of the process.
    """
    app = FastAPI(
        version=version,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
    )
    state = app.state
    state.settings, state.client, state.cache, state.health = settings, client, cache_client, health_state
    state.sessions = Sessions(settings.console_secret.get_secret_value())
    state.environment = create_environment()
    for page in (studio, video, gallery, queue, cache, health, login):
        app.include_router(page.router)
    app.mount("/static", StaticFiles(directory=FOLDER / "static"))
    _install_handlers(app)
    app.add_middleware(Headers)
    return app


def _install_handlers(app: FastAPI) -> None:
    async def answer_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return _show(request, error)

    async def answer_chorus_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ChorusError)
        if error.reason == errors.UNAUTHENTICATED:
            here = request.url.path if request.method == "GET" else HOME
            return RedirectResponse(f"{BASE}/login?next={quote(here)}", 303)
        return _show(request, from_chorus(error))

    async def answer_validation(request: Request, error: Exception) -> Response:
        return _show(request, ApiError(400, "invalid_value", "the address of the page is not complete"))

    async def answer_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = "there is no such page" if error.status_code == 404 else str(error.detail)
        return _show(request, ApiError(error.status_code, "invalid_request", message))

    async def answer_fault(request: Request, error: Exception) -> Response:
        return _show(request, ApiError(500, "internal", INTERNAL_MESSAGE))

    app.add_exception_handler(ApiError, answer_api_error)
    app.add_exception_handler(ChorusError, answer_chorus_error)
    app.add_exception_handler(RequestValidationError, answer_validation)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(Exception, answer_fault)


def _show(request: Request, error: ApiError) -> Response:
    title = _TITLES.get(error.status, "Something failed" if error.status >= 500 else "Not accepted")
    return render(
        request,
        get_visitor(request),
        "error.html",
        status=error.status,
        title=title,
        message=error.message,
    )
