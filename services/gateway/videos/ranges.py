"""Ranges of a download, and the conditions under which it is sent. All functions are pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_RANGE: Final = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*")


@dataclass(frozen=True)
class ByteRange:
    """Part of a file: `length` bytes from `offset` on."""

    offset: int
    length: int

    def describe(self, size: int) -> str:
        """Returns the value of Content-Range."""
        return f"bytes {self.offset}-{self.offset + self.length - 1}/{size}"


class OutOfRange(ValueError):
    """A range that selects no byte of the file."""


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Returns the range that a header selects; None for the whole file.

    Several ranges, another unit and a malformed header select the whole file, as HTTP allows.

    Args:
        size: size of the file, in bytes.

    Raises OutOfRange.
    """
    match = _RANGE.fullmatch(header.strip()) if header is not None else None
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:  # the last bytes
        length = min(int(last), size)
        if length == 0:
            raise OutOfRange
        return ByteRange(size - length, length)
    begin, end = int(first), int(last) if last else size - 1
    if last and end < begin:
        return None
    if begin >= size:
        raise OutOfRange
    return ByteRange(begin, min(end, size - 1) - begin + 1)


def matches_etag(header: str | None, etag: str) -> bool:
    """Returns whether If-None-Match names the file.

    Args:
        etag: entity tag of the file, with its quotation marks.
    """
    if header is None:
        return False
    tags = [part.strip().removeprefix("W/") for part in header.split(",")]
    return "*" in tags or etag in tags


def permits_range(header: str | None, etag: str) -> bool:
    """Returns whether If-Range, if there is one, names the file."""
    return header is None or header.strip() == etag
