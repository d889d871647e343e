"""The application: its routes, error envelope and middleware."""

from __future__ import annotations

from chorus_client import AsyncCacheClient, AsyncChorusClient
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from starlette.middleware.cors import CORSMiddleware

from services.gateway import health as health_routes
from services.gateway.calls import NO_TELEMETRY, Calls
from services.gateway.console.app import create_console
from services.gateway.console.paths import BASE, HOME
from services.gateway.errors import install_handlers
from services.gateway.health import Health
from services.gateway.openapi import install_document
from services.gateway.security.bodies import BodyLimit
from services.gateway.settings import GatewaySettings
from services.gateway.videos import content, events, models, reports, routes, sync
from services.gateway.videos.fields import CreateFields, EditFields, RemixFields, ReportFields
from services.gateway.videos.frame_rates import FrameRates
from services.runtime.version import VERSION

_DESCRIPTION = (
    "Generates videos. Errors have one envelope: `error` with `message`, `type`, `param` and `code`."
)


def create_app(
    settings: GatewaySettings,
    client: AsyncChorusClient,
    health: Health,
    cache: AsyncCacheClient | None = None,
) -> FastAPI:
    """Creates the application.

    Args:
        client: client of the scheduler, whose connection every request shares; its owner closes it.
        health: state of the process.
        cache: client of the cache for the console; None if the settings name none. Its owner closes it.
    """
    app = FastAPI(
        title="Chorus",
        version=VERSION,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
    )
    app.state.settings, app.state.client, app.state.health = settings, client, health
    app.state.frame_rates = FrameRates()
    install_handlers(app)
    for module in (health_routes, sync, routes, reports, content, events, models):
        app.include_router(module.router)
    install_document(app, (CreateFields, EditFields, RemixFields, ReportFields))
    if settings.console:
        app.mount(BASE, create_console(settings, client, cache, health, VERSION))

        @app.get("/", include_in_schema=False)
        @app.get(BASE, include_in_schema=False)
        async def open_console() -> RedirectResponse:
            return RedirectResponse(HOME)

    # The last one added is the outermost: a page that may call reads every answer, also those of Calls.
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, seconds=settings.body_seconds)
    app.add_middleware(
        Calls, limit=settings.max_concurrent_calls, send_seconds=settings.send_seconds, health=health
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            # SDKs send headers of their own, such as x-stainless-lang; none opens anything without a key.
            allow_headers=["*"],
            expose_headers=[
                "openai-poll-after-ms",
                "Retry-After",
                "x-request-id",
                "ETag",
                "Content-Range",
                sync.ID_HEADER,
            ],
        )
    return app
