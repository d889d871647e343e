"""Health of this process over HTTP: GET /health."""

from __future__ import annotations

import asyncio

from chorus_rpc.semconv import INSTANCE_KEY
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

PATH = "/health"


class Health:
    """State of this process.

    Args:
        instance_id: id by which a supervisor recognises its process; empty for none.

    Attributes:
        draining: set when the process ends; streams then end, too.
    """

    def __init__(self, instance_id: str = "") -> None:
        self.instance_id = instance_id
        self.draining = asyncio.Event()


router = APIRouter()


@router.get(PATH, include_in_schema=False)
async def get_health(request: Request) -> JSONResponse:
    """Answers 200 while the gateway accepts requests, 503 while it drains. It does not ask the scheduler."""
    health: Health = request.app.state.health
    headers = {INSTANCE_KEY: health.instance_id} if health.instance_id else {}
    if health.draining.is_set():
        return JSONResponse({"status": "draining"}, 503, headers)
    return JSONResponse({"status": "serving"}, 200, headers)
