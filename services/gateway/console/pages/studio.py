"""Studio: a request, its plan before it is sent, and the sending."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from chorus_client import AsyncChorusClient, Preview
from chorus_client.words import mark_words
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, Reason
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from services.gateway.console.donors import find_donor
from services.gateway.console.paths import BASE
from services.gateway.console.rendering import render
from services.gateway.console.views.cards import build_card, describe_plan
from services.gateway.console.views.request_form import (
    FIELDS,
    TICKED,
    fill_from,
    map_violations,
    parse_request_form,
)
from services.gateway.console.visitor import Form, User, Visit, Visitor
from services.gateway.errors import from_chorus
from services.gateway.videos.answers import find_generation
from services.gateway.videos.identifiers import format_video_id

router = APIRouter()

# Refusals of a request that its form shows; others are pages of their own.
_SHOWN: frozenset[Reason] = frozenset(
    {
        errors.INVALID_FIELD,
        errors.UNKNOWN_MODEL,
        errors.NOT_FOUND,
        errors.QUEUE_FULL,
        errors.RATE_LIMITED,
        errors.TENANT_LIMIT_REACHED,
        errors.REQUEST_ID_REUSED,
        errors.DEPENDENCY_UNAVAILABLE,
    }
)


@router.get("/")
async def show_studio(
    request: Request,
    visitor: Visit,
    client: User,
    video: str | None = None,
    change: str = "vary",
    prompt: str = "",
) -> Response:
    """Shows the form, empty or like an earlier request."""
    values = {"prompt": prompt[:8_192]}
    if video is not None:
        values = fill_from(await find_generation(client, video), change, await client.models())
    return await _show(request, visitor, client, {**values, "step_previews": TICKED})


@router.post("/preview")
async def preview_plan(request: Request, visitor: Visit, client: User, form: Form) -> Response:
    """Shows what the request would reuse, without sending it."""
    parsed = parse_request_form(form, await client.models())
    if parsed.faults:
        return await _show(request, visitor, client, form, parsed.faults)
    try:
        preview = await client.preview(parsed.prompt, **parsed.options)
    except ChorusError as error:
        return await _show_error(request, visitor, client, form, error)
    return await _show(request, visitor, client, form, preview=preview)


@router.post("/submit")
async def submit(request: Request, visitor: Visit, client: User, form: Form) -> Response:
    """Sends the request, once for each form that was shown, and continues with its video."""
    parsed = parse_request_form(form, await client.models())
    if parsed.faults:
        return await _show(request, visitor, client, form, parsed.faults)
    try:
        handle = await client.submit(parsed.prompt, **parsed.options)
    except ChorusError as error:
        return await _show_error(request, visitor, client, form, error)
    return RedirectResponse(f"{BASE}/videos/{format_video_id(handle.id)}", 303)


async def _show_error(
    request: Request, visitor: Visitor, client: AsyncChorusClient, form: Mapping[str, str], error: ChorusError
) -> Response:
    if error.reason not in _SHOWN:
        raise error
    faults = map_violations(error.violations) or {"": from_chorus(error).message}
    return await _show(request, visitor, client, form, faults)


async def _show(
    request: Request,
    visitor: Visitor,
    client: AsyncChorusClient,
    form: Mapping[str, str],
    faults: Mapping[str, str] | None = None,
    preview: Preview | None = None,
) -> Response:
    values = {name: form.get(name, "") for name in FIELDS}
    values["request_id"] = values["request_id"] or uuid.uuid4().hex
    recent = await client.list(limit=5)
    return render(
        request,
        visitor,
        "studio.html",
        status=422 if faults else 200,
        values=values,
        faults=faults or {},
        models=await client.models(),
        recent=[build_card(each) for each in recent],
        preview=None if preview is None else await _describe(client, preview),
    )


async def _describe(client: AsyncChorusClient, preview: Preview) -> dict[str, Any]:
    donor, plan = preview.plan.donor, preview.plan
    found = await find_donor(client, donor.generation_id if donor is not None else "")
    prompt = preview.proto.spec.prompt
    compared = donor is not None and donor.prompt
    return {
        "plan": plan,
        "sentence": describe_plan(plan, done=False),
        "donor": None if found is None else build_card(found),
        "seed_of_donor": found is not None and found.seed == preview.seed,
        "words": mark_words(prompt, donor.prompt) if donor is not None and compared else (),
        "donor_words": mark_words(donor.prompt, prompt) if donor is not None and compared else (),
        "answer": preview,
    }
