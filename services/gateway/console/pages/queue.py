"""Queue: what runs, and what waits."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from chorus_client import Generation
from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.gateway.console.rendering import render
from services.gateway.console.views.waiting import describe_waiting
from services.gateway.console.visitor import User, Visit
from services.gateway.videos.progress import count_progress, estimate_eta

router = APIRouter()

_SHOWN: Final = 100


@router.get("/queue")
async def show_queue(request: Request, visitor: Visit, client: User) -> Response:
    """Shows the generations that have not ended."""
    now = datetime.now(UTC)
    models = {model.id: model for model in await client.models()}
    running = await client.list("running", _SHOWN)
    waiting = (*await client.list("queued", _SHOWN), *await client.list("waiting", _SHOWN))
    return render(
        request,
        visitor,
        "queue.html",
        running=[
            (each, count_progress(each), estimate_eta(each, models.get(each.model))) for each in running
        ],
        waiting=[describe_waiting(each, now) for each in sorted(waiting, key=_order)],
        bound=_SHOWN,
    )


def _order(generation: Generation) -> tuple[bool, int]:
    """Those with a place in the queue first."""
    return generation.queue_position == 0, generation.queue_position
