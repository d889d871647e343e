"""Page tokens: opaque to clients, checked when they come back."""

from __future__ import annotations

import base64
import binascii
import re

from chorus_rpc import errors

_TOKEN = re.compile(r"1:(\d{1,19}):(\d)")


def encode(before: int, state: int) -> str:
    """The token of the page of those jobs of `state` (0: all) that come after number `before` in the list."""
    return base64.urlsafe_b64encode(f"1:{before}:{state}".encode()).decode()


def decode(token: str, state: int) -> int | None:
    """`before` of the page; None for the first one.

    Raises INVALID_FIELD for a token that no earlier page gave, or that was given for another state.
    """
    if not token:
        return None
    try:
        found = _TOKEN.fullmatch(base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii"))
    except (binascii.Error, ValueError):
        found = None
    if found is None or int(found[1]) >= 1 << 63:
        raise errors.invalid("page_token", "must be the next_page_token of an earlier page, unaltered")
    if int(found[2]) != state:
        raise errors.invalid("page_token", "belongs to a list of another state; start again without it")
    return int(found[1])
