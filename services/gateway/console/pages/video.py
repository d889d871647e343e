"""One video: where it came from, what was computed, and what that saved."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator
from typing import Annotated, Final

from chorus_client import AsyncChorusClient, Event, Generation
from chorus_client.report import build_report
from chorus_client.words import mark_words
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from chorus_rpc.limits import MAX_STEPS
from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import RedirectResponse, Response

from services.gateway.console.donors import find_donor
from services.gateway.console.paths import BASE
from services.gateway.console.rendering import render
from services.gateway.console.views.cards import PROBLEMS, build_card, describe_result
from services.gateway.console.views.comparison import find_full_computation, make_prompt_filter
from services.gateway.console.views.family import MAX_MEMBERS, build_family
from services.gateway.console.views.masks import build_masks
from services.gateway.console.views.waterfall import build_waterfall, compare_savings
from services.gateway.console.visitor import Form, User, Visit
from services.gateway.errors import ApiError
from services.gateway.settings import GatewaySettings
from services.gateway.videos.answers import find_generation
from services.gateway.videos.content import CACHE_CONTROL, FileConditions, FileQuery, get_content
from services.gateway.videos.events import describe_event, follow_events
from services.gateway.videos.identifiers import parse_video_id
from services.gateway.videos.progress import count_progress, estimate_eta
from services.gateway.videos.reports import remove_report, store_report

router = APIRouter(prefix="/videos/{video_id}")

# Upper bounds on the events that a page shows, on the seconds to read them, on donors of donors, on the
# generations among which descendants are sought, and on those of the same prompt among which the full
# computation is sought, with the seconds that it may take.
_EVENTS: Final = 300
_EVENT_SECONDS: Final = 15.0
_ANCESTORS: Final = 10
_SEARCHES: Final = 60
_COMPARED: Final = 50
_COMPARE_SECONDS: Final = 5.0


@router.get("")
async def show_video(request: Request, visitor: Visit, client: User, video_id: str) -> Response:
    """Shows a generation, in whatever state it is."""
    generation = await find_generation(client, video_id)
    events = await _read_events(client, generation)
    report = build_report(generation.proto, (event.proto for event in events))
    plan, settings = generation.plan, request.app.state.settings
    planned = generation.donor or (plan.donor if plan is not None and plan.reuse_steps else None)
    donor = await find_donor(client, planned.generation_id if planned is not None else "")
    full, full_hint = await _find_full(client, generation)
    masks, masks_left_out = build_masks(report.steps)
    predicted = plan.predicted_seconds_saved if plan is not None else 0.0
    compared = planned is not None and planned.prompt
    eta = estimate_eta(generation)
    last_step = next((event.step for event in reversed(events) if event.step is not None), None)
    if not generation.done and last_step is not None:
        eta = last_step.eta_seconds
    return render(
        request,
        visitor,
        "video.html",
        card=build_card(generation),
        generation=generation,
        sentence=describe_result(generation),
        planned=planned,
        donor=None if donor is None else build_card(donor),
        full=None if full is None else build_card(full),
        full_hint=full_hint,
        steps=report.steps,
        pictured=any(step.preview_event for step in report.steps),
        masks=masks,
        masks_left_out=masks_left_out,
        words=mark_words(generation.prompt, planned.prompt) if planned is not None and compared else (),
        donor_words=mark_words(planned.prompt, generation.prompt) if planned is not None and compared else (),
        bars=build_waterfall(generation.timings) if generation.state == "succeeded" else (),
        predicted=predicted,
        lengths=compare_savings(predicted, generation.seconds_saved),
        progress=count_progress(generation),
        eta=eta,
        trace_url=make_trace_url(settings, generation.trace_id),
        events=[(event, json.dumps(describe_event(event), indent=2, ensure_ascii=False)) for event in events],
        events_left_out=max(0, generation.last_sequence - len(events)),
        problems=PROBLEMS,
    )


@router.get("/family")
async def show_family(request: Request, visitor: Visit, client: User, video_id: str) -> Response:
    """Shows the donors of a video, and those that reused it."""
    chosen = await find_generation(client, video_id)
    ancestors: list[Generation] = []
    current = chosen
    while current.donor is not None and len(ancestors) < _ANCESTORS:
        found = await find_donor(client, current.donor.generation_id)
        if found is None or found.id in {chosen.id, *(each.id for each in ancestors)}:
            break
        ancestors.append(found)
        current = found
    root = ancestors[-1] if ancestors else chosen
    known, complete = await _find_descendants(client, root)
    family = build_family(ancestors, known, chosen)
    card = build_card(chosen)
    return render(
        request, visitor, "family.html", card=card, family=family, complete=complete, bound=MAX_MEMBERS
    )


@router.get("/content")
async def send_content(
    request: Request, client: User, video_id: str, query: FileQuery, conditions: FileConditions
) -> Response:
    """Sends the file of a video, or its thumbnail, always through this process: a page loads nothing from
    another host.
    """
    settings: GatewaySettings = request.app.state.settings
    own = settings.model_copy(update={"redirect_downloads": False})
    return await get_content(client, own, video_id, query, conditions)


@router.get("/steps/{number}/preview")
async def send_preview(
    client: User,
    video_id: str,
    number: Annotated[int, Path(ge=1, le=MAX_STEPS)],
    after: Annotated[int, Query(ge=0, lt=1 << 63)] = 0,
) -> Response:
    """Sends the picture of a computed step.

    Args:
        after: number of an event after which that of the step is sought, among the next _EVENTS.
    """
    generation = await find_generation(client, video_id)
    last = min(generation.last_sequence, after + _EVENTS)
    async with contextlib.aclosing(_iterate_events(client, generation, after, last)) as events:
        async for event in events:
            if event.step is not None and event.step.number == number and event.step.preview:
                return Response(
                    event.step.preview, media_type="image/jpeg", headers={"Cache-Control": CACHE_CONTROL}
                )
    raise ApiError(404, "not_found", f"step {number} of this video has no picture")


@router.get("/events")
async def send_events(
    request: Request,
    client: User,
    video_id: str,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Streams the events of a video, as /v1/videos does."""
    return await follow_events(request, client, request.app.state.settings, video_id, last_event_id)


@router.post("/cancel")
async def cancel(client: User, video_id: str, form: Form) -> Response:
    """Cancels a generation that has not ended."""
    generation = await find_generation(client, video_id)
    await client.handle(generation.id).cancel()
    following = f"{BASE}/queue" if form.get("back") == "queue" else f"{BASE}/videos/{video_id}"
    return RedirectResponse(following, 303)


@router.post("/delete")
async def delete(client: User, video_id: str, form: Form) -> Response:
    """Deletes a generation that has ended, and continues with the gallery."""
    generation = await find_generation(client, video_id)
    await client.handle(generation.id).delete()
    return RedirectResponse(f"{BASE}/gallery", 303)


@router.post("/report")
async def report(client: User, video_id: str, form: Form) -> Response:
    """Stores what the visitor found wrong with a video, or removes it."""
    handle = client.handle(parse_video_id(video_id))
    if form.get("withdraw"):
        await remove_report(handle, video_id)
    else:
        # A field of several lines: the comment is one.
        comment = " ".join(form.get("comment", "").split())
        await store_report(handle, form.get("problem", ""), comment, video_id)
    return RedirectResponse(f"{BASE}/videos/{video_id}#report", 303)


@router.post("/priority")
async def change_priority(client: User, video_id: str, form: Form) -> Response:
    """Moves a generation to another class of the queue; one that has left the queue stays as it is."""
    generation = await find_generation(client, video_id)
    try:
        await client.handle(generation.id).change_priority(form.get("priority", ""))
    except ChorusError as error:
        if error.reason != errors.WRONG_STATE:  # it has started meanwhile, which the page shows
            raise
    return RedirectResponse(f"{BASE}/queue", 303)


async def _find_descendants(client: AsyncChorusClient, root: Generation) -> tuple[list[Generation], bool]:
    """Returns the generations that reused `root`, or one that did so, and whether these are all."""
    found, waiting = {root.id: root}, deque([root.id])
    for _ in range(_SEARCHES):
        left = MAX_MEMBERS - len(found)
        if not waiting or left <= 0:
            break
        for each in await client.list(donor=waiting.popleft(), limit=left + 1):
            if each.id not in found:
                found[each.id] = each
                waiting.append(each.id)
    return list(found.values()), not waiting and len(found) <= MAX_MEMBERS


async def _find_full(client: AsyncChorusClient, generation: Generation) -> tuple[Generation | None, str]:
    """Returns the full computation of a request that reused something, and what the page says without it."""
    if generation.state != "succeeded" or not generation.hit:
        return None, ""
    try:
        async with asyncio.timeout(_COMPARE_SECONDS):
            known = await client.list(
                "succeeded", _COMPARED, decision="miss", prompt_contains=make_prompt_filter(generation.prompt)
            )
    except TimeoutError:
        return None, f"Its full computation was not found within {_COMPARE_SECONDS:g} seconds."
    found = find_full_computation(generation, known)
    if found is not None or generation.exact:
        return found, ""
    among = f" among the newest {_COMPARED} misses of this prompt" if len(known) == _COMPARED else ""
    return None, f"There is no full computation to compare it with{among}: “Compute in full” makes one."


def make_trace_url(settings: GatewaySettings, trace_id: str) -> str:
    """Returns the address of a trace; empty without one, or without a template."""
    return settings.console_trace_url.replace("{trace_id}", trace_id) if trace_id else ""


async def _read_events(client: AsyncChorusClient, generation: Generation) -> list[Event]:
    """Returns the events up to the state of a generation, at most _EVENTS."""
    last = min(generation.last_sequence, _EVENTS)
    return [event async for event in _iterate_events(client, generation, 0, last)]


async def _iterate_events(
    client: AsyncChorusClient, generation: Generation, after: int, last: int
) -> AsyncGenerator[Event, None]:
    """Yields the events with the numbers `after` + 1 to `last`, which has happened already."""
    if last <= after:
        return
    handle = client.handle(generation.id)
    async with contextlib.aclosing(handle.events(after, timeout=_EVENT_SECONDS)) as events:
        async for event in events:
            yield event
            if event.sequence >= last:
                return
