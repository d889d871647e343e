"""Endpoint of the events of a video, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Final

from chorus_client import AsyncGenerationHandle, ChorusError, Event
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from google.protobuf.json_format import MessageToDict
from sse_starlette import EventSourceResponse, ServerSentEvent

from services.gateway.calls import ResponseBroken
from services.gateway.errors import Fault, invalid
from services.gateway.health import Health
from services.gateway.security.keys import Caller, Settings
from services.gateway.videos.answers import find_generation

router = APIRouter(prefix="/v1/videos", tags=["videos"])

_EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^[1-9][0-9]*$"},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["id", "event", "data"],
}
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Events with `id` (the sequence number), `event` (the kind) and `data` (JSON).",
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
    204: {"description": "The video has ended, and the caller has all of its events."},
}


@router.get("/{video_id}/events", responses=_RESPONSES, response_class=Response)
async def follow_events(
    request: Request,
    client: Caller,
    settings: Settings,
    video_id: str,
    last_event_id: Annotated[
        str | None, Header(description="Number of the last event that the caller has.")
    ] = None,
    previews: Annotated[
        bool,
        Query(
            description="Whether the events of steps contain their pictures, `preview`, as JPEG in base64."
            " A video has them if it was requested with `step_previews`."
        ),
    ] = False,
) -> Response:
    """Streams the events of a video, past and live, until it has ended. `Last-Event-ID` continues after an
    event.
    """
    generation = await find_generation(client, video_id)
    after = _parse_sequence(last_event_id, generation.last_sequence)
    if generation.done and after >= generation.last_sequence:
        return Response(status_code=204)
    health: Health = request.app.state.health
    events = _stream(client.handle(generation.id), after, health.draining, previews)
    return _Stream(events, ping=settings.ping_seconds, headers={"Cache-Control": "no-store"})


class _Stream(EventSourceResponse):
    """Closes its generator in every case, which ends the call to the scheduler."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            assert isinstance(self.body_iterator, AsyncGenerator)
            await self.body_iterator.aclose()


def _parse_sequence(text: str | None, last: int) -> int:
    """Returns the number of the last event that the caller has; 0 for none. Raises ApiError (400)."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= last):
        bound = f"must be the number of an event, 0 to {last}, not {text[:32]!r}"
        raise invalid([Fault("Last-Event-ID", bound)])
    return int(text)


async def _stream(
    handle: AsyncGenerationHandle, after: int, draining: asyncio.Event, previews: bool
) -> AsyncGenerator[ServerSentEvent, None]:
    async with contextlib.aclosing(_until(handle.events(after), draining)) as events:
        try:
            async for event in events:
                yield ServerSentEvent(
                    json.dumps(
                        describe_event(event, previews=previews), ensure_ascii=False, separators=(",", ":")
                    ),
                    event=event.kind,
                    id=str(event.sequence),
                )
        except ChorusError as error:
            # The caller connects again, and continues after the last event.
            raise ResponseBroken(error.message) from error


def describe_event(event: Event, *, previews: bool = False) -> dict[str, Any]:
    """Returns an event of the gRPC API as JSON: fields by their names in the contract.

    Args:
        previews: whether the event of a step contains its picture, if it has one.
    """
    content = MessageToDict(event.proto, preserving_proto_field_name=True)
    if not previews:
        content.get("step_completed", {}).pop("preview", None)
    content["sequence"] = event.sequence  # a number; the mapping of the contract makes it text
    return content


async def _until(events: AsyncGenerator[Event, None], draining: asyncio.Event) -> AsyncGenerator[Event, None]:
    """Yields events until they end or this process drains."""
    stopped = asyncio.ensure_future(draining.wait())
    following: asyncio.Future[Event | None] | None = None
    try:
        while True:
            following = asyncio.ensure_future(_next(events))
            await asyncio.wait((following, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return
            event = following.result()
            if event is None:
                return
            yield event
    finally:
        stopped.cancel()
        if following is not None and not following.done():
            following.cancel()
            await asyncio.wait([following])
        await events.aclose()


async def _next(events: AsyncIterator[Event]) -> Event | None:
    return await anext(events, None)
