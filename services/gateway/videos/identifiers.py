"""Ids of videos: that of the generation behind a prefix."""

from __future__ import annotations

import re
from typing import Final

from chorus_rpc.limits import MAX_ID_CHARACTERS

from services.gateway.errors import ApiError

_PREFIX: Final = "video_"
_VIDEO_ID: Final = re.compile(rf"{_PREFIX}([A-Za-z0-9._-]{{1,{MAX_ID_CHARACTERS}}})")


def format_video_id(generation_id: str) -> str:
    return _PREFIX + generation_id


def find_generation_id(video_id: str) -> str | None:
    """Returns the id of the generation of a video; None for text that is no id of a video."""
    match = _VIDEO_ID.fullmatch(video_id)
    return match[1] if match else None


def parse_video_id(video_id: str, param: str = "video_id") -> str:
    """Returns the id of the generation of a video. Raises ApiError (404) for text that is no id of one."""
    found = find_generation_id(video_id)
    if found is None:
        raise make_not_found(video_id, param)
    return found


def make_not_found(video_id: str, param: str = "video_id") -> ApiError:
    return ApiError(404, "not_found", f"there is no video {video_id[:64]!r}", param=param)
