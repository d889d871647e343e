"""Domain errors, and the one table that maps them to gRPC statuses and back.

Every error status carries exactly one `google.rpc.ErrorInfo` (domain "chorus"), a `BadRequest` for bad input,
and a `RetryInfo` where a retry helps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc
import grpc.aio
from chorus.common.v1 import errors_pb2
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from chorus_rpc.semconv import ERROR_DOMAIN

Reason: TypeAlias = errors_pb2.ErrorReason.ValueType

INVALID_FIELD = errors_pb2.ERROR_REASON_INVALID_FIELD
UNKNOWN_MODEL = errors_pb2.ERROR_REASON_UNKNOWN_MODEL
UNKNOWN_ENCODER = errors_pb2.ERROR_REASON_UNKNOWN_ENCODER
REQUEST_ID_REUSED = errors_pb2.ERROR_REASON_REQUEST_ID_REUSED
NOT_FOUND = errors_pb2.ERROR_REASON_NOT_FOUND
WRONG_STATE = errors_pb2.ERROR_REASON_WRONG_STATE
QUEUE_FULL = errors_pb2.ERROR_REASON_QUEUE_FULL
DEPENDENCY_UNAVAILABLE = errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
DEADLINE_EXCEEDED = errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED
CANCELLED = errors_pb2.ERROR_REASON_CANCELLED
BLOB_CORRUPT = errors_pb2.ERROR_REASON_BLOB_CORRUPT
SHUTTING_DOWN = errors_pb2.ERROR_REASON_SHUTTING_DOWN
INTERNAL = errors_pb2.ERROR_REASON_INTERNAL
DISK_FULL = errors_pb2.ERROR_REASON_DISK_FULL
TIME_LIMIT_EXCEEDED = errors_pb2.ERROR_REASON_TIME_LIMIT_EXCEEDED
FIELD_IGNORED = errors_pb2.ERROR_REASON_FIELD_IGNORED
MODEL_DIVERGED = errors_pb2.ERROR_REASON_MODEL_DIVERGED
UNAUTHENTICATED = errors_pb2.ERROR_REASON_UNAUTHENTICATED
PERMISSION_DENIED = errors_pb2.ERROR_REASON_PERMISSION_DENIED
RATE_LIMITED = errors_pb2.ERROR_REASON_RATE_LIMITED
TENANT_LIMIT_REACHED = errors_pb2.ERROR_REASON_TENANT_LIMIT_REACHED

_CODES: Mapping[Reason, int] = {
    INVALID_FIELD: code_pb2.INVALID_ARGUMENT,
    UNKNOWN_MODEL: code_pb2.INVALID_ARGUMENT,
    UNKNOWN_ENCODER: code_pb2.INVALID_ARGUMENT,
    REQUEST_ID_REUSED: code_pb2.INVALID_ARGUMENT,
    NOT_FOUND: code_pb2.NOT_FOUND,
    WRONG_STATE: code_pb2.FAILED_PRECONDITION,
    QUEUE_FULL: code_pb2.RESOURCE_EXHAUSTED,
    DEPENDENCY_UNAVAILABLE: code_pb2.UNAVAILABLE,
    DEADLINE_EXCEEDED: code_pb2.DEADLINE_EXCEEDED,
    CANCELLED: code_pb2.CANCELLED,
    BLOB_CORRUPT: code_pb2.DATA_LOSS,
    SHUTTING_DOWN: code_pb2.UNAVAILABLE,
    INTERNAL: code_pb2.INTERNAL,
    DISK_FULL: code_pb2.RESOURCE_EXHAUSTED,
    TIME_LIMIT_EXCEEDED: code_pb2.DEADLINE_EXCEEDED,
    FIELD_IGNORED: code_pb2.INVALID_ARGUMENT,
    MODEL_DIVERGED: code_pb2.INTERNAL,
    UNAUTHENTICATED: code_pb2.UNAUTHENTICATED,
    PERMISSION_DENIED: code_pb2.PERMISSION_DENIED,
    RATE_LIMITED: code_pb2.RESOURCE_EXHAUSTED,
    TENANT_LIMIT_REACHED: code_pb2.RESOURCE_EXHAUSTED,
}

_REASONS: Mapping[str, Reason] = {
    name.removeprefix("ERROR_REASON_"): number for name, number in errors_pb2.ErrorReason.items()
}

# Reasons of statuses without our ErrorInfo, which gRPC itself or a proxy produced.
_REASONS_BY_CODE: Mapping[grpc.StatusCode, Reason] = {
    grpc.StatusCode.UNAVAILABLE: DEPENDENCY_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: QUEUE_FULL,
    grpc.StatusCode.NOT_FOUND: NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT: INVALID_FIELD,
    grpc.StatusCode.UNAUTHENTICATED: UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: PERMISSION_DENIED,
}


@dataclass(frozen=True)
class Violation:
    """A field outside its bound. `description` states the bound, the value received and the remedy."""

    field: str
    description: str


class ChorusError(Exception):
    """Error whose content is safe for callers.

    Args:
        reason: class of the error, which determines the gRPC status code.
        message: description for people, one sentence without secrets.
        metadata: facts for programs, sent as `ErrorInfo.metadata`.
        violations: the invalid fields, sent as `BadRequest`.
        retry_after: delay before a retry, in seconds, sent as `RetryInfo`.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after


def reason_name(reason: Reason) -> str:
    """Returns `ErrorInfo.reason` of a reason: the enum's name without its prefix."""
    return errors_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")


def invalid(field: str, description: str) -> ChorusError:
    """Returns the error of one invalid field. Collect several with `Violations`."""
    return invalid_fields([Violation(field, description)])


def invalid_fields(violations: Iterable[Violation], reason: Reason = INVALID_FIELD) -> ChorusError:
    """Returns the error of several invalid fields."""
    fields = tuple(violations)
    return ChorusError(reason, "; ".join(f"{v.field}: {v.description}" for v in fields), violations=fields)


def not_found(kind: str, identifier: str) -> ChorusError:
    """Returns the error of a missing object; `kind` names it in the message and the metadata."""
    return ChorusError(NOT_FOUND, f"no {kind} {identifier!r}", metadata={kind: identifier})


def unavailable(service: str, detail: str, retry_after: float = 1.0, *, setting: str = "") -> ChorusError:
    """Returns the error of a required service that does not answer; metadata `service` names it.

    Args:
        setting: environment variable of the time limit that passed, if one did.
    """
    return ChorusError(
        DEPENDENCY_UNAVAILABLE,
        f"{service} is not available: {detail}" + (f" ({setting})" if setting else ""),
        metadata={"service": service, **({"setting": setting} if setting else {})},
        retry_after=retry_after,
    )


def time_limit_exceeded(setting: str, detail: str) -> ChorusError:
    """Returns the error of work that took longer than its server permits.

    Args:
        setting: environment variable that sets the limit.
        detail: clause that names the work and the limit in seconds.
    """
    return ChorusError(TIME_LIMIT_EXCEEDED, f"{detail} ({setting})", metadata={"setting": setting})


class Violations:
    """Collects every invalid field, so that a caller can correct a request in one round."""

    def __init__(self) -> None:
        self._found: list[Violation] = []

    def require(self, condition: bool, field: str, description: str) -> bool:
        """Records a violation unless `condition` holds; returns `condition`."""
        if not condition:
            self._found.append(Violation(field, description))
        return condition

    @property
    def found(self) -> Sequence[Violation]:
        return tuple(self._found)

    def raise_if_any(self) -> None:
        if self._found:
            raise invalid_fields(self._found)


def to_status(error: ChorusError) -> grpc.Status:
    """Converts an error to a rich gRPC status for `context.abort_with_status`."""
    details: list[any_pb2.Any] = []

    def add(message: Message) -> None:
        packed = any_pb2.Any()
        packed.Pack(message)
        details.append(packed)

    add(
        error_details_pb2.ErrorInfo(
            reason=reason_name(error.reason), domain=ERROR_DOMAIN, metadata=error.metadata
        )
    )
    if error.violations:
        add(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                    for v in error.violations
                ]
            )
        )
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    # gRPC carries the message in a header of bounded size.
    return rpc_status.to_status(
        status_pb2.Status(code=_CODES[error.reason], message=error.message[:1000], details=details)
    )


def from_rpc_error(error: grpc.aio.AioRpcError, service: str) -> ChorusError:
    """Converts a failed call to `service` to its domain error.

    A bare UNAVAILABLE becomes DEPENDENCY_UNAVAILABLE with the name of the service.
    """
    code = error.code()
    info: error_details_pb2.ErrorInfo | None = None
    violations: list[Violation] = []
    retry_after: float | None = None
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError has the fields it reads
    for packed in status.details if status is not None else ():
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            packed.Unpack(info)
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            packed.Unpack(bad)
            violations += [Violation(v.field, v.description) for v in bad.field_violations]
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            packed.Unpack(retry)
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    message = error.details() or code.name
    if info is not None and info.domain == ERROR_DOMAIN:
        reason = _REASONS.get(info.reason, INTERNAL)
        return ChorusError(
            reason, message, metadata=dict(info.metadata), violations=violations, retry_after=retry_after
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        # gRPC itself rejects a message above its cap: a retry does not help. "SERVER:" is its prefix for
        # the limit of the service.
        limit = _name_setting(service, "MAX_MESSAGE_BYTES") if "SERVER:" in message else "limit of the caller"
        return invalid("message", f"{service}: {message} ({limit})")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and message.startswith("Concurrent RPC limit"):
        message = f"{message} ({_name_setting(service, 'MAX_CONCURRENT_CALLS')})"
    reason = _REASONS_BY_CODE.get(code, INTERNAL)
    if reason == DEPENDENCY_UNAVAILABLE:
        return unavailable(service, message)
    return ChorusError(reason, f"{service}: {message}", metadata={"service": service})


def _name_setting(service: str, field: str) -> str:
    """Returns the environment variable of a setting that every service has."""
    return f"CHORUS_{service.upper()}_{field}"


def to_job_error(error: ChorusError) -> errors_pb2.JobError:
    """Converts an error to the message that a failed job carries."""
    return errors_pb2.JobError(reason=error.reason, message=error.message, metadata=error.metadata)
