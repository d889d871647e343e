"""Endpoint that answers with the file itself, when it is ready."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from chorus_client import AsyncGenerationHandle, ChorusError, Generation
from chorus_rpc import errors
from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.gateway.errors import ApiError
from services.gateway.health import Health
from services.gateway.security.keys import Caller, Settings
from services.gateway.videos.content import require_video, stream_video
from services.gateway.videos.fields import CreateFields
from services.gateway.videos.identifiers import format_video_id
from services.gateway.videos.routes import IdempotencyKey, accept_creation, describe_body

router = APIRouter(prefix="/v1/videos", tags=["videos"])

ID_HEADER: Final = "chorus-video-id"
_CANCEL_SECONDS: Final = 5.0
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The file.",
        "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {ID_HEADER: {"description": "Id of the video.", "schema": {"type": "string"}}},
    }
}

T = TypeVar("T")


class ClientGone(Exception):
    """The caller closed its connection."""


@router.post(
    "/sync", responses=_RESPONSES, response_class=Response, openapi_extra=describe_body(CreateFields)
)
async def create_video_sync(
    request: Request, client: Caller, settings: Settings, idempotency_key: IdempotencyKey = None
) -> Response:
    """Makes a video and answers with its file.

    If the caller closes the connection, the wait takes too long, or the gateway ends, the video is cancelled,
    unless the request has an `Idempotency-Key`, with which it can be repeated.
    """
    _, accepted = await accept_creation(request, client, idempotency_key, single=True)
    handle = client.handle(accepted[0].id)
    name = format_video_id(handle.id)
    try:
        health: Health = request.app.state.health
        # The rest of the drain is for the cancellation and the answer.
        ending = _until_draining(health, settings.drain_seconds / 2)
        generation = await _while_connected(request, _wait(handle, settings.sync_seconds), ending)
    except (ClientGone, ChorusError) as error:
        if idempotency_key is None:
            with contextlib.suppress(ChorusError):
                await handle.cancel(timeout=_CANCEL_SECONDS)
        if isinstance(error, ClientGone):
            return Response(status_code=499)  # reaches only the log
        if error.reason != errors.DEADLINE_EXCEEDED:
            raise
        raise ApiError(
            503,
            "deadline_exceeded",
            f"the video {name!r} was not ready within {settings.sync_seconds:g} s"
            " (CHORUS_GATEWAY_SYNC_SECONDS); use POST /v1/videos, which does not wait",
        ) from error
    video = require_video(generation)
    headers = {ID_HEADER: name, "Cache-Control": "no-store"}
    return await stream_video(client.handle(generation.id), video, None, headers)


async def _wait(handle: AsyncGenerationHandle, seconds: float) -> Generation:
    async with contextlib.aclosing(handle.events(timeout=seconds)) as events:
        async for _ in events:
            pass
    return await handle.status()


async def _while_connected(
    request: Request, work: Coroutine[Any, Any, T], end: Coroutine[Any, Any, None]
) -> T:
    """Returns the result of `work`.

    Cancels it and raises ClientGone if the caller closes its connection, ChorusError (SHUTTING_DOWN) if `end`
    returns before.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_disconnected(request))
    ending = asyncio.ensure_future(end)
    tasks: tuple[asyncio.Future[Any], ...] = (working, gone, ending)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if gone.done():
            raise ClientGone
        raise ChorusError(
            errors.SHUTTING_DOWN, "the gateway ends before the video is ready; send the request again"
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _until_draining(health: Health, seconds: float) -> None:
    """Returns some seconds after this process has begun to end."""
    await health.draining.wait()
    await asyncio.sleep(seconds)


async def _until_disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
