"""Answers that several endpoints give: a video found by its id, and the video object with its headers."""

from __future__ import annotations

from collections.abc import Sequence

from chorus_client import AsyncChorusClient, ChorusError, Generation
from chorus_rpc import errors
from fastapi import Request
from fastapi.responses import JSONResponse

from services.gateway.videos.frame_rates import FrameRates
from services.gateway.videos.identifiers import make_not_found, parse_video_id
from services.gateway.videos.progress import choose_poll_milliseconds, estimate_eta
from services.gateway.videos.video_object import VideoObject, build_video


async def find_generation(client: AsyncChorusClient, video_id: str, param: str = "video_id") -> Generation:
    """Returns the generation of a video. Raises ApiError (404)."""
    try:
        return await client.handle(parse_video_id(video_id, param)).status()
    except ChorusError as error:
        if error.reason == errors.NOT_FOUND:
            raise make_not_found(video_id, param) from error
        raise


def get_rates(request: Request) -> FrameRates:
    """Returns the frame rates that the process keeps."""
    rates: FrameRates = request.app.state.frame_rates
    return rates


async def make_object(
    request: Request,
    client: AsyncChorusClient,
    generation: Generation,
    *,
    outputs: Sequence[Generation] = (),
    warnings: Sequence[str] = (),
) -> VideoObject:
    """Returns the object of a generation, with the URL of its file if downloads are redirected."""
    rate = await get_rates(request).find(generation.model, client)
    url = None
    if request.app.state.settings.redirect_downloads and generation.state == "succeeded":
        try:
            url = (await client.handle(generation.id).url()).url
        except ChorusError as error:
            if error.reason != errors.NOT_FOUND:  # it was deleted meanwhile, and may be one of a list
                raise
    return build_video(generation, rate, outputs=outputs, warnings=warnings, url=url)


def answer_video(video: VideoObject, generation: Generation) -> JSONResponse:
    """Returns a response with the time after which the client should ask again, if the video has not
    ended.
    """
    headers = {"Cache-Control": "no-store"}
    if not generation.done:
        wait = choose_poll_milliseconds(estimate_eta(generation), generation.queue_position)
        headers["openai-poll-after-ms"] = str(wait)
    return JSONResponse(video.model_dump(mode="json"), headers=headers)
