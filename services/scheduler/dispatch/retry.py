"""Classifies failed calls: the job is retried once the service is available again, or fails."""

from __future__ import annotations

from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

# The service is available or coming back; the same request may well succeed later.
_TRANSIENT = frozenset(
    {errors.DEPENDENCY_UNAVAILABLE, errors.SHUTTING_DOWN, errors.QUEUE_FULL, errors.CANCELLED}
)


class RetryableFailure(Exception):
    """A failure after which the job is retried.

    Args:
        service: the service that is unavailable or busy.
        cause: error shown to the job's watchers; its metadata names the service.
        crashed: whether the service died while it worked on this job.
    """

    def __init__(self, service: str, cause: ChorusError, crashed: bool = False) -> None:
        super().__init__(cause.message)
        self.service = service
        self.cause = cause
        self.crashed = crashed


def classify_failure(error: ChorusError, service: str, began: bool = False) -> RetryableFailure | ChorusError:
    """Returns the exception to raise for a failed call: RetryableFailure, or the error that ends the job.

    Args:
        service: the service that was called.
        began: whether the service had begun to work on the job.
    """
    # A status without our ErrorInfo was not the service's own answer: the connection broke.
    broken = error.reason == errors.INTERNAL and "service" in error.metadata
    if error.reason not in _TRANSIENT and not broken:
        return error
    if error.reason == errors.QUEUE_FULL:
        error.metadata.setdefault("service", service)
        return RetryableFailure(service, error)
    # A service that drains reports so; only a sudden end may have been caused by the job itself.
    crashed = began and error.reason != errors.SHUTTING_DOWN
    if error.reason == errors.DEPENDENCY_UNAVAILABLE and error.metadata.get("service"):
        return RetryableFailure(service, error, crashed)
    return RetryableFailure(service, errors.unavailable(service, error.message), crashed)
