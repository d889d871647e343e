"""Page tokens: opaque to clients, validated on return."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors

_TOKEN = re.compile(r"2:(\d{1,19}):([0-9a-f]{32})")


def encode(beyond: int, request: pb.ListGenerationsRequest) -> str:
    """Returns the token of the page of a list that continues beyond number `beyond`, in its order."""
    return base64.urlsafe_b64encode(f"2:{beyond}:{_digest_filters(request)}".encode()).decode()


def decode(request: pb.ListGenerationsRequest) -> int | None:
    """Returns `beyond` of the requested page; None for the first one.

    Raises INVALID_FIELD for a token that no earlier page returned, or that belongs to other filters.
    """
    if not request.page_token:
        return None
    try:
        token = base64.b64decode(request.page_token, altchars=b"-_", validate=True)
        match = _TOKEN.fullmatch(token.decode("ascii"))
    except (binascii.Error, ValueError):
        match = None
    if match is None or int(match[1]) >= 1 << 63:
        raise errors.invalid("page_token", "must be the next_page_token of an earlier page, unaltered")
    if match[2] != _digest_filters(request):
        raise errors.invalid("page_token", "belongs to a list with other filters; start again without it")
    return int(match[1])


def _digest_filters(request: pb.ListGenerationsRequest) -> str:
    filters = pb.ListGenerationsRequest()
    filters.CopyFrom(request)
    filters.ClearField("page_size")
    filters.ClearField("page_token")
    filters.ClearField("after_generation_id")  # the token takes its place
    return hashlib.sha256(filters.SerializeToString(deterministic=True)).hexdigest()[:32]
