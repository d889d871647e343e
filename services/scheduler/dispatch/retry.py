"""What a failed call means for a job: try again when the service is back, or give up."""

from __future__ import annotations

from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

# The service is there or coming back; the same request may well succeed later.
_PASSING = frozenset(
    {errors.DEPENDENCY_UNAVAILABLE, errors.SHUTTING_DOWN, errors.QUEUE_FULL, errors.CANCELLED}
)


class RetryableFailure(Exception):
    """A job cannot go on now, and is to be tried again.

    Args:
        service: that is missing or busy.
        cause: for the job's watchers; its metadata names the service.
        crashed: the service died while it worked on this job.
    """

    def __init__(self, service: str, cause: ChorusError, crashed: bool = False) -> None:
        super().__init__(cause.message)
        self.service = service
        self.cause = cause
        self.crashed = crashed


def classify_failure(error: ChorusError, service: str, began: bool = False) -> RetryableFailure | ChorusError:
    """What to raise for a failed call to `service`: RetryableFailure, or the error that ends the job.

    Args:
        began: the service had begun to work on the job.
    """
    # A status without an ErrorInfo of ours was not the service's own answer: the connection broke.
    broken = error.reason == errors.INTERNAL and "service" in error.metadata
    if error.reason not in _PASSING and not broken:
        return error
    if error.reason == errors.QUEUE_FULL:
        error.metadata.setdefault("service", service)
        return RetryableFailure(service, error)
    # One that drains says so; only a sudden end may be the job's own doing.
    crashed = began and error.reason != errors.SHUTTING_DOWN
    if error.reason == errors.DEPENDENCY_UNAVAILABLE and error.metadata.get("service"):
        return RetryableFailure(service, error, crashed)
    return RetryableFailure(service, errors.unavailable(service, error.message), crashed)
