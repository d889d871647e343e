"""Endpoint of the files of a video: the mp4, in ranges, and its thumbnail."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from chorus_client import AsyncGenerationHandle, ChorusError, Generation, VideoInfo
from chorus_rpc import errors
from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from services.gateway.calls import ResponseBroken
from services.gateway.errors import ApiError, Fault, invalid
from services.gateway.security.keys import Caller, Settings
from services.gateway.videos.answers import find_generation
from services.gateway.videos.identifiers import format_video_id
from services.gateway.videos.progress import choose_poll_milliseconds, estimate_eta
from services.gateway.videos.ranges import ByteRange, OutOfRange, matches_etag, parse_range, permits_range

router = APIRouter(prefix="/v1/videos", tags=["videos"])

_VIDEO_TYPE: Final = "video/mp4"
# The file of a video never changes; only its owner may keep it.
CACHE_CONTROL: Final = "private, max-age=31536000, immutable"
_BINARY: Final = {"type": "string", "format": "binary"}
_RESPONSES: Final[dict[int | str, dict[str, object]]] = {
    200: {
        "description": "The file.",
        "content": {_VIDEO_TYPE: {"schema": _BINARY}, "image/jpeg": {"schema": _BINARY}},
    },
    206: {"description": "The range of the file."},
    302: {"description": "The presigned URL of the file, if the server redirects downloads."},
    304: {"description": "The file that the caller has."},
}


class ContentQuery(BaseModel):
    """Which file is requested."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    variant: Literal["video", "thumbnail"] = "video"
    """`video`, or `thumbnail`: the middle frame as JPEG."""
    video_id: Annotated[str, Field(max_length=256)] | None = None
    """The id of the path once more, as some clients send it."""


@dataclass(frozen=True)
class Conditions:
    """Headers that say which part of a file is requested, and when."""

    range: str | None
    if_range: str | None
    if_none_match: str | None


def read_conditions(
    range_header: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Conditions:
    """Returns the conditions of a request."""
    return Conditions(range_header, if_range, if_none_match)


FileQuery = Annotated[ContentQuery, Query()]
FileConditions = Annotated[Conditions, Depends(read_conditions)]


@router.get("/{video_id}/content", responses=_RESPONSES, response_class=Response)
async def get_content(
    client: Caller,
    settings: Settings,
    video_id: str,
    query: FileQuery,
    conditions: FileConditions,
) -> Response:
    """Returns the mp4 of a complete video, or its thumbnail. Serves one range at a time."""
    if query.video_id not in (None, video_id):
        raise invalid([Fault("video_id", "must be the id of the path, or not stated")])
    generation = await find_generation(client, video_id)
    video = require_video(generation)
    handle = client.handle(generation.id)
    try:
        if query.variant == "thumbnail":
            return await _answer_thumbnail(handle, generation, conditions.if_none_match)
        if settings.redirect_downloads:
            return RedirectResponse((await handle.url()).url, 302, headers={"Cache-Control": "no-store"})
        etag = f'"{video.digest}"'
        headers = _describe_file(generation, etag, "mp4")
        if matches_etag(conditions.if_none_match, etag):
            return Response(status_code=304, headers=headers)
        permitted = permits_range(conditions.if_range, etag)
        try:
            part = parse_range(conditions.range, video.size_bytes) if permitted else None
        except OutOfRange:
            raise ApiError(
                416,
                "range_not_satisfiable",
                f"the range must begin within the file, which has {video.size_bytes} bytes",
                headers={"Content-Range": f"bytes */{video.size_bytes}"},
            ) from None
        return await stream_video(handle, video, part, headers)
    except ChorusError as error:
        raise _translate(error, video_id) from error


@router.head("/{video_id}/content", include_in_schema=False)
async def describe_content(
    client: Caller, settings: Settings, video_id: str, query: FileQuery, conditions: FileConditions
) -> Response:
    """Returns the headers of get_content."""
    response = await get_content(client, settings, video_id, query, conditions)
    if isinstance(response, ClosingStream):
        await response.close()
    return Response(status_code=response.status_code, headers=dict(response.headers))


async def stream_video(
    handle: AsyncGenerationHandle, video: VideoInfo, part: ByteRange | None, headers: dict[str, str]
) -> StreamingResponse:
    """Returns the response that streams a video, or a part of it, as the scheduler sends it.

    Raises ChorusError if not even the first chunk arrives.
    """
    selected = part or ByteRange(0, video.size_bytes)
    chunks = handle.chunks(offset=selected.offset, length=selected.length)
    try:
        first = await anext(chunks, b"")
    except BaseException:
        await chunks.aclose()
        raise
    headers = {**headers, "Accept-Ranges": "bytes", "Content-Length": str(selected.length)}
    if part is not None:
        headers["Content-Range"] = part.describe(video.size_bytes)
    return ClosingStream(first, chunks, 206 if part else 200, headers)


class ClosingStream(StreamingResponse):
    """Streams a file, and closes its source in every case, also for a client that goes before the first byte.

    Args:
        first: first chunk, which has been read from the source.
        chunks: source of the others.
    """

    def __init__(
        self, first: bytes, chunks: AsyncGenerator[bytes, None], status: int, headers: dict[str, str]
    ) -> None:
        super().__init__(_join(first, chunks), status, headers, media_type=_VIDEO_TYPE)
        self._chunks = chunks

    async def __call__(self, scope: object, receive: object, send: object) -> None:
        try:
            await super().__call__(scope, receive, send)  # type: ignore[arg-type]
        finally:
            await self.close()

    async def close(self) -> None:
        """Closes the source. A generator that has not started does not close what it reads."""
        assert isinstance(self.body_iterator, AsyncGenerator)
        await self.body_iterator.aclose()
        await self._chunks.aclose()


async def _join(first: bytes, chunks: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(chunks):
        yield first
        try:
            async for chunk in chunks:
                yield chunk
        except ChorusError as error:
            raise ResponseBroken(error.message) from error


def require_video(generation: Generation) -> VideoInfo:
    """Returns the description of a video that is complete. Raises ApiError: 409 before, 422 if it failed."""
    name = format_video_id(generation.id)
    if not generation.done:
        milliseconds = choose_poll_milliseconds(estimate_eta(generation), generation.queue_position)
        raise ApiError(
            409,
            "video_not_ready",
            f"the video {name!r} is {generation.state}; ask for its state until it is completed",
            retry_after=milliseconds / 1000,
        )
    if generation.video is None or generation.state != "succeeded":
        cause = generation.error.message if generation.error is not None else "it was cancelled"
        raise ApiError(422, "video_failed", f"there is no file of the video {name!r}: {cause}")
    return generation.video


async def _answer_thumbnail(
    handle: AsyncGenerationHandle, generation: Generation, if_none_match: str | None
) -> Response:
    thumbnail = await handle.thumbnail()
    etag = f'"{hashlib.sha256(thumbnail.data).hexdigest()}"'
    headers = _describe_file(generation, etag, "jpg")
    if matches_etag(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(thumbnail.data, headers=headers, media_type=thumbnail.media_type)


def _describe_file(generation: Generation, etag: str, ending: str) -> dict[str, str]:
    return {
        "ETag": etag,
        "Cache-Control": CACHE_CONTROL,
        "Content-Disposition": f'attachment; filename="{format_video_id(generation.id)}.{ending}"',
    }


def _translate(error: ChorusError, video_id: str) -> Exception:
    """Returns the error of a file that cannot be read although its video is complete."""
    if error.reason == errors.BLOB_CORRUPT:
        message = f"the file of the video {video_id[:160]!r} is no longer available; generate it again"
        return ApiError(410, "video_expired", message)
    return error
