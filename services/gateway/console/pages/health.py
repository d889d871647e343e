"""Health: how often something was reused, what that saved, and whether the services answer."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Final

from chorus_client import AsyncChorusClient, Model
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.gateway.console.rendering import render
from services.gateway.console.views.numbers import format_money
from services.gateway.console.views.statistics import build_figures, build_today
from services.gateway.console.visitor import User, Visit
from services.gateway.settings import GatewaySettings

router = APIRouter()

_COUNTED: Final = 500


@router.get("/health")
async def show_health(request: Request, visitor: Visit, client: User) -> Response:
    """Shows figures of the newest generations, and the services."""
    settings: GatewaySettings = request.app.state.settings
    begin = time.perf_counter()
    info = await client.server_info()
    answered = time.perf_counter() - begin
    generations, (models, fault) = await asyncio.gather(client.list(limit=_COUNTED), find_models(client))
    today = build_today(generations, datetime.now(UTC), _COUNTED)
    price = settings.console_denoiser_hour_price
    money = format_money(today.price_saved(price), settings.console_currency) if price else ""
    return render(
        request,
        visitor,
        "health.html",
        models=models,
        fault=fault,
        answered=answered,
        figures=build_figures(generations),
        today=today,
        money=money,
        services=info.services,
        left_out=info.denoisers_left_out,
        counted=_COUNTED,
        version=request.app.version,
    )


async def find_models(client: AsyncChorusClient) -> tuple[tuple[Model, ...], str]:
    """Returns the models, and why there are none if a service behind the scheduler is not available."""
    try:
        return await client.models(), ""
    except ChorusError as error:
        if error.reason != errors.DEPENDENCY_UNAVAILABLE:
            raise
        return (), error.message
