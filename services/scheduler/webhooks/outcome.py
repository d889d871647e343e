"""Outcomes of an attempt at a delivery."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class OutcomeKind(StrEnum):
    """Class of an outcome, as the metrics name it."""

    DELIVERED = "delivered"
    # The receiver answered with another status than 200 to 299; a redirection is one.
    REJECTED = "rejected"
    # The receiver answered 410: it wants no further request.
    GONE = "gone"
    TIMEOUT = "timeout"
    # No connection, no valid certificate, no answer in HTTP, or no address.
    UNREACHABLE = "unreachable"
    # The host has addresses, but none to which requests may be sent.
    ADDRESS_REFUSED = "address_refused"
    # The tenant has no signing secret any more.
    NO_SECRET = "no_secret"
    # A fault of this program; its log has the cause.
    INTERNAL = "internal"


@dataclass(frozen=True)
class Outcome:
    """Outcome of an attempt.

    Attributes:
        cause: cause of a failure for the log, without path and query of the URL; empty for a success.
        retry_after: pause before the next attempt that the receiver asked for, in seconds; 0 if it asked for
            none.
    """

    kind: OutcomeKind
    cause: str = ""
    retry_after: float = 0.0
