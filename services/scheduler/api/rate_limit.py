"""Rate limit per tenant: a token bucket for each, in the memory of one scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from chorus_rpc.errors import RATE_LIMITED, ChorusError

_MINUTE_NS: Final = 60 * 10**9
_MILLISECOND_NS: Final = 10**6
# Lower bound on the number of buckets at which those that are full again are dropped: a new one is full, too.
_MIN_SWEEP: Final = 1_000


class TokenBuckets:
    """Token buckets by name, each of `burst` tokens at first, to which a token is added every `interval`.

    A bucket is stored as the time at which it will be full again. Times are integers, so that a token exists
    exactly when it was announced.

    Args:
        interval: time until a bucket gains one token, in nanoseconds, at least 1.
        burst: tokens of a full bucket, at least 1.
    """

    def __init__(self, interval: int, burst: int) -> None:
        self._interval = interval
        self._capacity = interval * burst
        self._full_at: dict[str, int] = {}
        self._sweep_above = _MIN_SWEEP

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, name: str, now: int) -> int:
        """Takes a token and returns 0; without a token, changes nothing and returns the time until the next.

        Args:
            now: time of a monotonic clock, in nanoseconds.
        """
        full_at = max(self._full_at.get(name, now), now) + self._interval
        wait = full_at - self._capacity - now
        if wait > 0:
            return wait
        self._full_at[name] = full_at
        if len(self._full_at) > self._sweep_above:
            self._full_at = {each: time for each, time in self._full_at.items() if time > now}
            # Doubled, so that sweeps cost a constant time per call.
            self._sweep_above = max(_MIN_SWEEP, 2 * len(self._full_at))
        return 0


class RateLimit:
    """Limits the requests of each tenant to this scheduler; several schedulers each have their own.

    Args:
        per_minute: requests per minute; 0 for no limit.
        burst: requests that may come at once after a pause.
        clock: returns the time of a monotonic clock, in nanoseconds.
    """

    def __init__(self, per_minute: int, burst: int, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._per_minute = per_minute
        self._clock = clock
        # Rounded up: never more than `per_minute`.
        self._buckets = TokenBuckets(-(-_MINUTE_NS // per_minute), burst) if per_minute else None

    def take(self, tenant: str) -> None:
        """Counts a request. Raises RATE_LIMITED with the time after which the next one is accepted."""
        wait = self._buckets.take(tenant, self._clock()) if self._buckets is not None else 0
        if wait:
            # Rounded up, because a retry that is early is refused again.
            seconds = -(-wait // _MILLISECOND_NS) / 1_000
            raise ChorusError(
                RATE_LIMITED,
                f"tenant {tenant!r} may send {self._per_minute} requests per minute"
                f" (CHORUS_SCHEDULER_TENANT_REQUESTS_PER_MINUTE); try again in {seconds:.3f} s",
                metadata={
                    "limit": str(self._per_minute),
                    "setting": "CHORUS_SCHEDULER_TENANT_REQUESTS_PER_MINUTE",
                },
                retry_after=seconds,
            )
