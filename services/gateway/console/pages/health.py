"""Health: how often something was reused, what that saved, and whether the services answer."""

from __future__ import annotations

import time
from typing import Final

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
    models = await client.models()
    answered = time.perf_counter() - begin
    figures = build_figures(await client.list(limit=_COUNTED))
    return render(
        request,
        visitor,
        "health.html",
        models=models,
        answered=answered,
        figures=figures,
        counted=_COUNTED,
        version=request.app.version,
    )
