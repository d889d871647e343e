"""Location of the finished videos in an object store, as its setting states it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

SETTING: Final = "CHORUS_SCHEDULER_VIDEO_STORE"
_LOCATION: Final = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(/(?P<folder>.*?)/?)?")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_DEFAULT_FOLDER: Final = "videos"
# Root of the cache's keys: its sweeper removes what it finds there and has no row for.
_LATENTS: Final = "v1"


@dataclass(frozen=True)
class BucketLocation:
    """A bucket, and the folder in it: the beginning of all keys, without the slash at its end."""

    bucket: str
    folder: str


def parse_location(location: str) -> BucketLocation:
    """Returns the location of a URL such as s3://bucket/folder. Raises ValueError with what to write."""
    match = _LOCATION.fullmatch(location)
    if match is None:
        raise ValueError("must be s3://BUCKET or s3://BUCKET/FOLDER, with the name of a bucket, or empty")
    folder = match["folder"] or _DEFAULT_FOLDER
    segments = folder.split("/")
    if not all(map(_SEGMENT.fullmatch, segments)):
        raise ValueError("must have a folder of letters, digits, '_', '-' and '.', such as s3://bucket/a/b")
    if segments[0] == _LATENTS:
        raise ValueError(f"must have another folder than {_LATENTS}, where the cache keeps latents")
    return BucketLocation(match["bucket"], folder)


def check_location(location: str) -> str:
    """Returns a location that `parse_location` accepts, or "". Raises ValueError for another."""
    if location:
        parse_location(location)
    return location
