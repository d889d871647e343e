"""Endpoints of videos: create, read, list, delete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from chorus_client import AsyncChorusClient, ChorusError, Generation
from chorus_rpc import errors
from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse

from services.gateway.security.keys import Caller
from services.gateway.videos.bodies import read_body
from services.gateway.videos.fields import CreateFields, parse_fields
from services.gateway.videos.frame_rates import FrameRates
from services.gateway.videos.identifiers import make_not_found, parse_video_id
from services.gateway.videos.mapping import Submission, build_submission, translate_error
from services.gateway.videos.progress import choose_poll_milliseconds, estimate_eta
from services.gateway.videos.video_object import VideoObject, build_video

router = APIRouter(prefix="/v1/videos", tags=["videos"])

IdempotencyKey = Annotated[str | None, Header(description="Repeating a request with the same key is safe.")]


@router.post("", response_model=VideoObject)
async def create_video(
    request: Request, client: Caller, idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    """Accepts a video and answers at once; it is made in its turn."""
    fields = parse_fields(CreateFields, await read_body(request))
    models = await client.models()
    get_rates(request).keep(models)
    submission = build_submission(fields, models, idempotency_key)
    try:
        accepted = await submit(client, submission)
    except ChorusError as error:
        raise translate_error(error, fields) from error
    return await answer_accepted(request, client, accepted, submission)


@router.get("/{video_id}", response_model=VideoObject)
async def get_video(request: Request, client: Caller, video_id: str) -> JSONResponse:
    """Returns the state of a video."""
    generation = await find_generation(client, video_id)
    return await answer_video(request, client, generation)


async def submit(client: AsyncChorusClient, submission: Submission) -> Sequence[Generation]:
    """Submits videos, all or none; returns their generations."""
    handles = await client.submit_many(submission.prompt, submission.outputs, **submission.options)
    return [handle.accepted for handle in handles if handle.accepted is not None]


async def find_generation(client: AsyncChorusClient, video_id: str) -> Generation:
    """Returns the generation of a video. Raises ApiError (404)."""
    try:
        return await client.handle(parse_video_id(video_id)).status()
    except ChorusError as error:
        if error.reason == errors.NOT_FOUND:
            raise make_not_found(video_id) from error
        raise


def get_rates(request: Request) -> FrameRates:
    rates: FrameRates = request.app.state.frame_rates
    return rates


async def answer_accepted(
    request: Request, client: AsyncChorusClient, accepted: Sequence[Generation], submission: Submission
) -> JSONResponse:
    """Returns the answer to a creation: the first video."""
    return await answer_video(request, client, accepted[0], outputs=accepted, warnings=submission.warnings)


async def answer_video(
    request: Request, client: AsyncChorusClient, generation: Generation, **details: Any
) -> JSONResponse:
    """Returns a video with the time after which the client should ask again, if it has not ended."""
    rate = await get_rates(request).find(generation.model, client)
    video = build_video(generation, rate, **details)
    headers = {"Cache-Control": "no-store"}
    if not generation.done:
        wait = choose_poll_milliseconds(estimate_eta(generation), generation.queue_position)
        headers["openai-poll-after-ms"] = str(wait)
    return JSONResponse(video.model_dump(mode="json"), headers=headers)
