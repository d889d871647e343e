"""Health: how often something was reused, what that saved, and whether the services answer."""

from __future__ import annotations

import time
from typing import Final

from chorus_client import AsyncChorusClient, Model
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.gateway.console.rendering import render
from services.gateway.console.views.statistics import build_figures
from services.gateway.console.visitor import User, Visit

router = APIRouter()

_COUNTED: Final = 200


@router.get("/health")
async def show_health(request: Request, visitor: Visit, client: User) -> Response:
    """Shows figures of the newest generations."""
    begin = time.perf_counter()
    generations = await client.list(limit=_COUNTED)
    answered = time.perf_counter() - begin
    models, fault = await find_models(client)
    return render(
        request,
        visitor,
        "health.html",
        models=models,
        fault=fault,
        answered=answered,
        figures=build_figures(generations),
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
