"""Gallery: all videos, with search."""

from __future__ import annotations

import asyncio
from typing import Final

from chorus_client import Generation
from chorus_client.states import STATES
from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.gateway.console.rendering import render
from services.gateway.console.views.cards import build_card
from services.gateway.console.views.request_form import parse_label
from services.gateway.console.visitor import User, Visit
from services.gateway.errors import ApiError
from services.gateway.videos.identifiers import find_generation_id

router = APIRouter()

_PAGE: Final = 24
_SEARCH_SECONDS: Final = 15.0


@router.get("/gallery")
async def show_gallery(
    request: Request,
    visitor: Visit,
    client: User,
    text: str = "",
    label: str = "",
    state: str = "",
    after: str = "",
) -> Response:
    """Shows a page of the videos that match."""
    faults: list[str] = []
    labels = parse_label(label, lambda fault: faults.append(f"Label: {fault}")) if label.strip() else None
    if state and state not in STATES:
        faults.append("State: not a state of a video")
    found: tuple[Generation, ...] = ()
    if not faults:
        try:
            async with asyncio.timeout(_SEARCH_SECONDS):
                found = await client.list(
                    state or None,
                    _PAGE + 1,
                    labels=labels,
                    prompt_contains=text.strip() or None,
                    after=find_generation_id(after),
                )
        except TimeoutError:
            raise ApiError(
                503, "search_timeout", f"the search took longer than {_SEARCH_SECONDS:g} s: narrow it"
            ) from None
    return render(
        request,
        visitor,
        "gallery.html",
        status=422 if faults else 200,
        faults=faults,
        cards=[build_card(each) for each in found[:_PAGE]],
        more=len(found) > _PAGE,
        text=text,
        label=label,
        state=state,
        after=after,
        states=list(STATES),
    )
