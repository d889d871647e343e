"""Endpoints of reports: what is wrong with a video. They are an extension of Chorus."""

from __future__ import annotations

from chorus_client import AsyncGenerationHandle, ChorusError, Generation
from chorus_rpc import errors
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from services.gateway.security.keys import Caller
from services.gateway.videos.answers import answer_video, make_object
from services.gateway.videos.bodies import read_body
from services.gateway.videos.fields import ReportFields, parse_fields
from services.gateway.videos.identifiers import make_not_found, parse_video_id
from services.gateway.videos.routes import describe_body
from services.gateway.videos.video_object import VideoObject

router = APIRouter(prefix="/v1/videos", tags=["videos"])


@router.post("/{video_id}/report", response_model=VideoObject, openapi_extra=describe_body(ReportFields))
async def report_video(request: Request, client: Caller, video_id: str) -> JSONResponse:
    """Stores what is wrong with a complete video, in place of an earlier report."""
    fields = parse_fields(ReportFields, await read_body(request))
    handle = client.handle(parse_video_id(video_id))
    generation = await store_report(handle, fields.problem, fields.comment, video_id)
    return answer_video(await make_object(request, client, generation), generation)


@router.delete("/{video_id}/report", response_model=VideoObject)
async def withdraw_report(request: Request, client: Caller, video_id: str) -> JSONResponse:
    """Removes the report of a video, if it has one."""
    handle = client.handle(parse_video_id(video_id))
    generation = await remove_report(handle, video_id)
    return answer_video(await make_object(request, client, generation), generation)


async def store_report(
    handle: AsyncGenerationHandle, problem: str, comment: str, video_id: str
) -> Generation:
    """Returns the generation with its report. Raises ApiError (404), ChorusError otherwise."""
    try:
        return await handle.report(problem, comment)
    except ChorusError as error:
        if error.reason == errors.NOT_FOUND:
            raise make_not_found(video_id) from error
        raise


async def remove_report(handle: AsyncGenerationHandle, video_id: str) -> Generation:
    """Returns the generation without a report. Raises ApiError (404), ChorusError otherwise."""
    try:
        return await handle.withdraw_report()
    except ChorusError as error:
        if error.reason == errors.NOT_FOUND:
            raise make_not_found(video_id) from error
        raise
