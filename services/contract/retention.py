"""Bounds of `Retention`, said once for the scheduler and the cache."""

from __future__ import annotations

from chorus.common.v1 import latents_pb2
from chorus_rpc.limits import MAX_LIFETIME_SECONDS


def find_retention_fault(retention: latents_pb2.Retention) -> str | None:
    """Returns what is wrong with the lifetime, or None."""
    if not retention.HasField("lifetime"):
        return None
    seconds, nanos = retention.lifetime.seconds, retention.lifetime.nanos
    whole = seconds >= 0 and 0 <= nanos < 1_000_000_000
    if whole and 0 < seconds + nanos / 1e9 <= MAX_LIFETIME_SECONDS:
        return None
    return f"must be above 0 and at most {MAX_LIFETIME_SECONDS} seconds, not {seconds + nanos / 1e9:g}"
