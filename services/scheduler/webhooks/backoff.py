"""Pauses between the attempts at a delivery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Exponential pauses with jitter, and the end of the attempts.

    Attributes:
        first: longest pause after the first attempt, in seconds, above 0.
        longest: upper bound on every pause, in seconds, at least `first`.
        give_up: age of a delivery after which no further attempt begins, in seconds.
    """

    first: float
    longest: float
    give_up: float

    def next_pause(
        self, attempts: int, age: float, draw: Callable[[], float], requested: float = 0.0
    ) -> float | None:
        """Returns the pause after a failed attempt, in seconds; None to give up.

        Half of it is drawn, so that deliveries that failed together do not come back together. The last
        attempt begins at the end of the time, rather than a pause before it.

        Args:
            attempts: attempts so far, at least 1.
            age: seconds since the delivery was created.
            draw: returns a random number of 0 to 1.
            requested: shortest pause that the receiver asked for, in seconds; `longest` bounds it too.
        """
        left = self.give_up - age
        if left <= 0:
            return None
        # A power that would overflow a float is far above `longest`.
        full = min(self.longest, self.first * 2.0 ** min(attempts - 1, 64))
        return min(left, max(full * (0.5 + 0.5 * draw()), min(requested, self.longest)))
