"""The error envelope of the API: every failed request has the same body, whatever failed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, Reason, reason_name
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

UNSUPPORTED: Final = "unsupported_parameter"
INVALID: Final = "invalid_value"
INTERNAL_MESSAGE: Final = "internal error; the cause is in the log of the gateway"


@dataclass(frozen=True)
class Fault:
    """A field that cannot be accepted.

    Attributes:
        param: name of the field as the caller wrote it.
        message: the bound, the value received and the remedy.
        code: machine-readable class.
    """

    param: str
    message: str
    code: str = INVALID


class ApiError(Exception):
    """Failure of a request.

    Args:
        status: status of the response.
        code: machine-readable cause.
        message: description for people, one sentence without secrets.
        param: field at fault; None if none is.
        faults: every field at fault.
        retry_after: delay before a retry, in seconds.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        faults: Sequence[Fault] = (),
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.faults = tuple(faults)
        self.retry_after = retry_after
        self.headers = dict(headers or {})


# Status and code of the reasons of Chorus. Others are INTERNAL.
_ANSWERS: Final[Mapping[Reason, tuple[int, str]]] = {
    errors.INVALID_FIELD: (400, INVALID),
    errors.FIELD_IGNORED: (400, INVALID),
    errors.UNKNOWN_MODEL: (400, "model_not_found"),
    errors.REQUEST_ID_REUSED: (409, "idempotency_key_reused"),
    errors.NOT_FOUND: (404, "not_found"),
    errors.WRONG_STATE: (409, "wrong_state"),
    errors.UNAUTHENTICATED: (401, "invalid_api_key"),
    errors.PERMISSION_DENIED: (403, "permission_denied"),
    errors.QUEUE_FULL: (429, "queue_full"),
    errors.RATE_LIMITED: (429, "rate_limited"),
    errors.TENANT_LIMIT_REACHED: (429, "tenant_limit_reached"),
    errors.DEPENDENCY_UNAVAILABLE: (503, "dependency_unavailable"),
    errors.SHUTTING_DOWN: (503, "shutting_down"),
    errors.DEADLINE_EXCEEDED: (503, "deadline_exceeded"),
    errors.TIME_LIMIT_EXCEEDED: (503, "time_limit_exceeded"),
    errors.CANCELLED: (503, "cancelled"),
    errors.DISK_FULL: (503, "disk_full"),
    errors.UNKNOWN_ENCODER: (503, "unknown_encoder"),
}
_RETRY_SECONDS: Final = 1.0


def invalid(faults: Sequence[Fault]) -> ApiError:
    """Returns the error of a request with invalid fields, of which there is at least one."""
    first = faults[0]
    message = "; ".join(f"{fault.param}: {fault.message}" for fault in faults)
    return ApiError(400, first.code, message, param=first.param, faults=faults)


def from_chorus(error: ChorusError) -> ApiError:
    """Converts an error of the scheduler, or of the connection to it."""
    status, code = _ANSWERS.get(error.reason, (500, reason_name(error.reason).lower()))
    message, retry_after = error.message, error.retry_after
    if error.reason == errors.DEPENDENCY_UNAVAILABLE and "target" in error.metadata:
        message = "the scheduler is not available; try again later"  # without its address
    if status in (429, 503) and retry_after is None:
        retry_after = _RETRY_SECONDS
    faults = [Fault(each.field, each.description, code) for each in error.violations]
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return ApiError(
        status,
        code,
        message,
        param=faults[0].param if faults else None,
        faults=faults,
        retry_after=retry_after,
        headers=headers,
    )


def build_body(error: ApiError) -> dict[str, Any]:
    """Returns the JSON body of an error."""
    body: dict[str, Any] = {
        "message": error.message,
        "type": _find_type(error.status),
        "param": error.param,
        "code": error.code,
    }
    if error.faults:
        body["violations"] = [
            {"param": fault.param, "message": fault.message, "code": fault.code} for fault in error.faults
        ]
    return {"error": body}


def make_response(error: ApiError) -> JSONResponse:
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return JSONResponse(build_body(error), error.status, headers)


def install_handlers(app: FastAPI) -> None:
    """Gives every failure of an application the envelope, also those of the framework."""

    async def answer_api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return make_response(error)

    async def answer_chorus_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ChorusError)
        return make_response(from_chorus(error))

    async def answer_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return make_response(invalid([_describe_parameter(each) for each in error.errors()]))

    async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return make_response(_from_http(request, error))

    async def answer_fault(_: Request, error: Exception) -> JSONResponse:
        return make_response(ApiError(500, "internal", INTERNAL_MESSAGE))

    app.add_exception_handler(ApiError, answer_api_error)
    app.add_exception_handler(ChorusError, answer_chorus_error)
    app.add_exception_handler(RequestValidationError, answer_validation)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(Exception, answer_fault)


def _describe_parameter(entry: Mapping[str, Any]) -> Fault:
    """Returns the fault of a parameter of a URL or a header."""
    name = ".".join(str(part) for part in entry["loc"][1:])[:128] or "body"
    if entry["type"] == "extra_forbidden":
        return Fault(name, "is not a parameter of this URL", UNSUPPORTED)
    message = str(entry["msg"])
    return Fault(name, f"{message[:1].lower()}{message[1:]}, not {str(entry['input'])[:64]!r}")


def _from_http(request: Request, error: HTTPException) -> ApiError:
    path = request.url.path[:200]
    if error.status_code == 404:
        return ApiError(
            404, "unknown_url", f"there is no {request.method} {path}; docs/videos_api.md lists the URLs"
        )
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{path} does not support {request.method}; it supports {allowed}"
        return ApiError(405, "method_not_allowed", message, headers=error.headers)
    return ApiError(error.status_code, "invalid_request", str(error.detail), headers=error.headers)


def _find_type(status: int) -> str:
    types = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return types.get(status, "server_error" if status >= 500 else "invalid_request_error")
