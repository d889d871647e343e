"""Faults of the two stores at start: those that time cannot cure, as one line with setting and remedy.

A store that is not up yet refuses connections, does not answer, has no address yet, or answers that it is
unavailable. Any other fault needs a change of the configuration.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping

import grpc
import urllib3
from minio.error import InvalidResponseError, S3Error
from pymilvus.exceptions import ConnectionConfigException, MilvusException, ParamError

from services.cache.certificates import TlsFault
from services.cache.s3_credentials import CredentialsRefused

_NO_S3 = "CHORUS_CACHE_S3_ENDPOINT: the server there does not speak the protocol of S3"
_KEYS = "CHORUS_CACHE_S3_ACCESS_KEY, CHORUS_CACHE_S3_SECRET_KEY"
_REGION = "CHORUS_CACHE_S3_REGION: the bucket is in another region"
# By the error code of S3.
_S3_REMEDIES: Mapping[str, str] = {
    "InvalidAccessKeyId": "CHORUS_CACHE_S3_ACCESS_KEY: the object store does not know this key",
    "SignatureDoesNotMatch": "CHORUS_CACHE_S3_SECRET_KEY: it is not the secret of CHORUS_CACHE_S3_ACCESS_KEY",
    "AccessDenied": f"{_KEYS}: these keys may not list or create the bucket; grant them access to it",
    "ExpiredToken": "CHORUS_CACHE_S3_SESSION_TOKEN: it has expired",
    "InvalidToken": "CHORUS_CACHE_S3_SESSION_TOKEN: the object store does not accept it",
    "RequestTimeTooSkewed": "the clocks of this machine and of the object store differ; set them",
    "NoSuchBucket": "CHORUS_CACHE_S3_BUCKET: the bucket does not exist; create it",
    "InvalidBucketName": "CHORUS_CACHE_S3_BUCKET: the object store does not accept this name",
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
}
# Answers of status 4xx that a repetition may not meet again.
_PASSING_S3_CODES = ("RequestTimeout", "OperationAborted", "SlowDown")
_PASSING_STATUSES = (408, 429)
_NOT_IMPLEMENTED = 501  # the only status of a server's fault that repeats
_NOT_XML = re.compile(r"Response code: ([1-4]\d\d|501)")

_MILVUS_TOKEN = "CHORUS_CACHE_MILVUS_TOKEN: the server refuses it"
_REFUSED_TOKEN = re.compile(r"auth check failure|not authenticated|unauthenticated", re.IGNORECASE)


def describe_s3_fault(error: BaseException, endpoint: str, bucket: str) -> str | None:
    """Returns why no retry of the first call can succeed; None for an error that time may cure."""
    for cause in _causes(error):
        if isinstance(cause, CredentialsRefused):
            return str(cause)
        if isinstance(cause, S3Error):
            return _describe_answer(cause, endpoint, bucket)
        if isinstance(cause, InvalidResponseError) and _NOT_XML.search(str(cause)):
            return f"{_NO_S3} ({endpoint})"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                "CHORUS_CACHE_S3_ENDPOINT, CHORUS_CACHE_S3_CA: the certificate of"
                f" {endpoint} is not accepted: {cause.verify_message}"
            )
        if isinstance(cause, ssl.SSLError):
            return f"CHORUS_CACHE_S3_SECURE: {endpoint} does not answer with TLS ({cause.reason})"
    return None


def describe_milvus_fault(error: BaseException, uri: str) -> str | None:
    """Returns why no retry of the connection to a server can succeed; None if time may cure the error."""
    for cause in _causes(error):
        if isinstance(cause, TlsFault):
            return str(cause)
        if isinstance(cause, ParamError | ConnectionConfigException):
            return f"CHORUS_CACHE_MILVUS_URI: {cause.message}"
        if isinstance(cause, MilvusException) and _REFUSED_TOKEN.search(cause.message):
            return f"{_MILVUS_TOKEN} ({cause.message[:200]})"
        if isinstance(cause, grpc.RpcError):
            # Only the errors of calls have a code.
            code = cause.code() if isinstance(cause, grpc.Call) else None
            if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                return _MILVUS_TOKEN
            if code is grpc.StatusCode.UNIMPLEMENTED:
                return f"CHORUS_CACHE_MILVUS_URI: the server at {uri} is no Milvus"
    return None


def _describe_answer(error: S3Error, endpoint: str, bucket: str) -> str | None:
    status = error.response.status
    if (
        (status >= 500 and status != _NOT_IMPLEMENTED)
        or status in _PASSING_STATUSES
        or error.code in _PASSING_S3_CODES
    ):
        return None
    remedy = _S3_REMEDIES.get(error.code or "", "CHORUS_CACHE_S3_ENDPOINT, CHORUS_CACHE_S3_BUCKET: refused")
    return f"{remedy} (bucket {bucket} at {endpoint}: {error.code or status}, {error.message})"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and those that led to it, outermost first. urllib3 keeps its own in `reason`."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        nested: object = None
        if isinstance(error, urllib3.exceptions.MaxRetryError):
            nested = error.reason
        elif isinstance(error, urllib3.exceptions.SSLError) and error.args:
            nested = error.args[0]
        error = nested if isinstance(nested, BaseException) else error.__cause__ or error.__context__
