"""Gallery: all videos, with search."""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlencode

from chorus_client import Generation
from chorus_client.states import DECISIONS, STATES
from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.contract.edits import EDIT_KINDS
from services.gateway.console.pages.health import find_models
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
    model: str = "",
    decision: str = "",
    edit: str = "",
    reported: str = "",
    after: str = "",
) -> Response:
    """Shows a page of the videos that match."""
    faults: list[str] = []
    labels = parse_label(label, lambda fault: faults.append(f"Label: {fault}")) if label.strip() else None
    for name, chosen, known in (
        ("State", state, STATES),
        ("Reuse", decision, DECISIONS),
        ("Edit", edit, EDIT_KINDS),
        ("Report", reported, ("yes",)),
    ):
        if chosen and chosen not in known:
            faults.append(f"{name}: must be one of {', '.join(known)}, not {chosen[:40]!r}")
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
                    model=model or None,
                    decision=decision or None,
                    edit=edit or None,
                    reported=bool(reported),
                )
        except TimeoutError:
            raise ApiError(
                503, "search_timeout", f"the search took longer than {_SEARCH_SECONDS:g} s: narrow it"
            ) from None
    filters = {
        "text": text,
        "label": label,
        "state": state,
        "model": model,
        "decision": decision,
        "edit": edit,
        "reported": reported,
    }
    models = [each.id for each in (await find_models(client))[0]]
    return render(
        request,
        visitor,
        "gallery.html",
        status=422 if faults else 200,
        faults=faults,
        cards=[build_card(each) for each in found[:_PAGE]],
        more=len(found) > _PAGE,
        filters=filters,
        query=urlencode({name: value for name, value in filters.items() if value}),
        after=after,
        choices=[
            ("state", "State", list(STATES)),
            # A model that is no longer served has videos still.
            ("model", "Model", models if model in ("", *models) else [model, *models]),
            ("decision", "Reuse", list(DECISIONS)),
            ("edit", "Edit", list(EDIT_KINDS)),
        ],
    )
