"""Page tokens: opaque to clients, validated on return."""

from __future__ import annotations

import base64
import binascii
import re

from chorus_rpc import errors

_TOKEN = re.compile(r"1:(\d{1,19}):(\d)")


def encode(before: int, state: int) -> str:
    """Returns the token of the page that continues below number `before`, of jobs in `state` (0: all)."""
    return base64.urlsafe_b64encode(f"1:{before}:{state}".encode()).decode()


def decode(token: str, state: int) -> int | None:
    """Returns `before` of the page; None for the first one.

    Raises INVALID_FIELD for a token that no earlier page returned, or that belongs to another state.
    """
    if not token:
        return None
    try:
        match = _TOKEN.fullmatch(base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii"))
    except (binascii.Error, ValueError):
        match = None
    if match is None or int(match[1]) >= 1 << 63:
        raise errors.invalid("page_token", "must be the next_page_token of an earlier page, unaltered")
    if int(match[2]) != state:
        raise errors.invalid("page_token", "belongs to a list of another state; start again without it")
    return int(match[1])
