"""Endpoints of videos: create, edit, read, list, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from chorus_client import AsyncChorusClient, ChorusError, Generation
from chorus_rpc import errors
from chorus_rpc.limits import MAX_ID_CHARACTERS
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from services.gateway.errors import UNSUPPORTED, ApiError, Fault, invalid
from services.gateway.security.keys import Caller
from services.gateway.videos.answers import answer_video, find_generation, get_rates, make_object
from services.gateway.videos.bodies import FORM_TYPE, JSON_TYPE, File, read_body
from services.gateway.videos.fields import CreateFields, EditFields, RemixFields, parse_fields
from services.gateway.videos.identifiers import format_video_id, make_not_found, parse_video_id
from services.gateway.videos.mapping import Submission, build_remix, build_submission, translate_error
from services.gateway.videos.video_object import VideoObject

router = APIRouter(prefix="/v1/videos", tags=["videos"])

# Upper bound on the name of a kind of edit, in characters.
_MAX_EDIT: Final = 64

IdempotencyKey = Annotated[
    str | None, Header(description="Repeating a request with the same key returns the same video.")
]


class ListQuery(BaseModel):
    """Part of a list, of the videos that match every filter."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    after: str | None = Field(None, max_length=256)
    """Id of the video after which the list starts, in its order."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    """Upper bound on the number of videos."""
    order: Literal["asc", "desc"] = "desc"
    """`desc` for the newest first, `asc` for the oldest first."""
    model: str | None = Field(None, alias="chorus[model]", max_length=MAX_ID_CHARACTERS)
    """Id of the model of the videos."""
    decision: Literal["hit", "miss", "exact"] | None = Field(None, alias="chorus[decision]")
    """Whether they reuse latents of an earlier video, compute every step, or repeat an earlier video."""
    edit: str | None = Field(None, alias="chorus[edit]", max_length=_MAX_EDIT)
    """Kind of edit from the donor's prompt, such as `colour`."""
    reported: bool = Field(False, alias="chorus[reported]")
    """Whether only videos with a report are listed."""
    donor: str | None = Field(None, alias="chorus[donor]", max_length=256)
    """Id of the video whose steps they take."""


class VideoList(BaseModel):
    """Part of the caller's videos."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    """Confirmation of a deletion."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


def describe_body(kind: type[BaseModel]) -> dict[str, Any]:
    """Returns the part of the OpenAPI document about a body, which may be JSON or a form."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {
        "requestBody": {
            "required": True,
            "content": {JSON_TYPE: {"schema": schema}, FORM_TYPE: {"schema": schema}},
        }
    }


@router.post("", response_model=VideoObject, openapi_extra=describe_body(CreateFields))
async def create_video(
    request: Request, client: Caller, idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    """Accepts a video and answers at once; it is made in its turn."""
    submission, accepted = await accept_creation(request, client, idempotency_key)
    return await _answer(request, client, submission, accepted)


@router.post(
    "/edits", response_model=VideoObject, openapi_extra=describe_body(EditFields), summary="Edit Video"
)
async def edit_video(
    request: Request, client: Caller, idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    """Accepts a video that starts from a complete one: what the two prompts have in common is kept."""
    body = await read_body(request)
    if isinstance(body.get("video"), File):
        raise invalid([Fault("video", 'must be {"id": "video_…"}; uploads are not supported', UNSUPPORTED)])
    fields = parse_fields(EditFields, body)
    return await _remix(request, client, fields, fields.video.id, "video", idempotency_key)


@router.post("/{video_id}/remix", response_model=VideoObject, openapi_extra=describe_body(RemixFields))
async def remix_video(
    request: Request, client: Caller, video_id: str, idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    """Accepts a video that starts from a complete one: what the two prompts have in common is kept."""
    fields = parse_fields(RemixFields, await read_body(request))
    return await _remix(request, client, fields, video_id, "video_id", idempotency_key)


@router.post("/extensions", include_in_schema=False)
@router.post("/characters", include_in_schema=False)
async def refuse_unsupported(request: Request) -> None:
    """Refuses what the OpenAI API has and Chorus does not."""
    raise ApiError(
        404, "unsupported_endpoint", f"{request.url.path} is not supported: see docs/videos_api.md"
    )


@router.get("")
async def list_videos(request: Request, client: Caller, query: Annotated[ListQuery, Query()]) -> VideoList:
    """Lists the caller's videos."""
    after = None if query.after is None else parse_video_id(query.after, "after")
    try:
        found = await client.list(
            limit=query.limit + 1,
            after=after,
            oldest_first=query.order == "asc",
            model=query.model,
            decision=query.decision,
            edit=query.edit,
            reported=query.reported,
            donor=None if query.donor is None else parse_video_id(query.donor, "chorus[donor]"),
        )
    except ChorusError as error:
        if error.reason == errors.NOT_FOUND and query.after is not None:
            raise make_not_found(query.after, "after") from error
        raise
    videos = await asyncio.gather(
        *(make_object(request, client, generation) for generation in found[: query.limit])
    )
    return VideoList(
        data=list(videos),
        first_id=videos[0].id if videos else None,
        last_id=videos[-1].id if videos else None,
        has_more=len(found) > query.limit,
    )


@router.get("/{video_id}", response_model=VideoObject)
async def get_video(request: Request, client: Caller, video_id: str) -> JSONResponse:
    """Returns the state of a video."""
    generation = await find_generation(client, video_id)
    return answer_video(await make_object(request, client, generation), generation)


@router.delete("/{video_id}")
async def delete_video(client: Caller, video_id: str) -> DeletedVideo:
    """Deletes a video; one that has not ended is cancelled first."""
    handle = client.handle(parse_video_id(video_id))
    try:
        await handle.cancel()
        await handle.delete()
    except ChorusError as error:
        if error.reason == errors.NOT_FOUND:
            raise make_not_found(video_id) from error
        raise
    return DeletedVideo(id=format_video_id(handle.id))


async def accept_creation(
    request: Request, client: AsyncChorusClient, idempotency_key: str | None, *, single: bool = False
) -> tuple[Submission, Sequence[Generation]]:
    """Submits the videos of a request body; returns their generations.

    Args:
        single: whether the request must ask for one video.

    Raises ApiError that names every field that cannot be honoured.
    """
    fields = parse_fields(CreateFields, await read_body(request))
    models = await client.models()
    get_rates(request).keep(models)
    submission = build_submission(fields, models, idempotency_key)
    if single and submission.outputs > 1:
        raise invalid([Fault("n", "must be 1 here, as the answer is one file", UNSUPPORTED)])
    return submission, await _submit(client, submission, fields)


async def _remix(
    request: Request,
    client: AsyncChorusClient,
    fields: RemixFields,
    video_id: str,
    param: str,
    idempotency_key: str | None,
) -> JSONResponse:
    source = await find_generation(client, video_id, param)
    submission = build_remix(fields, source, idempotency_key)
    return await _answer(request, client, submission, await _submit(client, submission, fields))


async def _submit(
    client: AsyncChorusClient, submission: Submission, fields: RemixFields
) -> Sequence[Generation]:
    try:
        handles = await client.submit_many(submission.prompt, submission.outputs, **submission.options)
    except ChorusError as error:
        raise translate_error(error, fields) from error
    return [handle.accepted for handle in handles if handle.accepted is not None]


async def _answer(
    request: Request, client: AsyncChorusClient, submission: Submission, accepted: Sequence[Generation]
) -> JSONResponse:
    video = await make_object(request, client, accepted[0], outputs=accepted, warnings=submission.warnings)
    return answer_video(video, accepted[0])
