"""Faults of an object store: those at the start that time cannot cure, and a lack of space.

A store that is not up yet refuses connections, does not answer, has no address yet, or answers that it is
unavailable. Any other fault needs a change of the configuration.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from typing import Final

import urllib3
from minio.error import InvalidResponseError, S3Error

from services.object_store.credentials import CredentialsRefused
from services.object_store.variables import S3Variables

ABSENT: Final = ("NoSuchKey", "NoSuchObject")
_FULL_CODES: Final = ("XMinioStorageFull", "InsufficientStorage", "QuotaExceeded")
# Answers of status 4xx that a repetition may not meet again.
_PASSING_CODES: Final = ("RequestTimeout", "OperationAborted", "SlowDown")
_PASSING_STATUSES: Final = (408, 429)
_NOT_IMPLEMENTED: Final = 501  # the only status of a server's fault that repeats
_NOT_XML: Final = re.compile(r"Response code: ([1-4]\d\d|501)")


def is_storage_full(error: BaseException) -> bool:
    """Returns whether an object store answered that it has no space left."""
    return isinstance(error, S3Error) and error.code in _FULL_CODES


def describe_s3_fault(error: BaseException, endpoint: str, bucket: str, variables: S3Variables) -> str | None:
    """Returns why no retry of the first call can succeed; None for an error that time may cure."""
    address = variables.name("endpoint")
    for cause in find_causes(error):
        if isinstance(cause, CredentialsRefused):
            return str(cause)
        if isinstance(cause, S3Error):
            return _describe_answer(cause, endpoint, bucket, variables)
        if isinstance(cause, InvalidResponseError) and _NOT_XML.search(str(cause)):
            return f"{address}: the server there does not speak the protocol of S3 ({endpoint})"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"{address}, {variables.name('ca')}: the certificate of"
                f" {endpoint} is not accepted: {cause.verify_message}"
            )
        if isinstance(cause, ssl.SSLError):
            return f"{variables.name('secure')}: {endpoint} does not answer with TLS ({cause.reason})"
    return None


def _describe_answer(error: S3Error, endpoint: str, bucket: str, variables: S3Variables) -> str | None:
    status = error.response.status
    if (
        (status >= 500 and status != _NOT_IMPLEMENTED)
        or status in _PASSING_STATUSES
        or error.code in _PASSING_CODES
    ):
        return None
    refused = f"{variables.name('endpoint')}, {variables.bucket}: refused"
    remedy = _make_remedies(variables).get(error.code or "", refused)
    return f"{remedy} (bucket {bucket} at {endpoint}: {error.code or status}, {error.message})"


def _make_remedies(variables: S3Variables) -> Mapping[str, str]:
    """Returns cause and remedy by the error code of S3."""
    key, secret = variables.name("access_key"), variables.name("secret_key")
    token, region = variables.name("session_token"), variables.name("region")
    return {
        "InvalidAccessKeyId": f"{key}: the object store does not know this key",
        "SignatureDoesNotMatch": f"{secret}: it is not the secret of {key}",
        "AccessDenied": (
            f"{key}, {secret}: these keys may not list or create the bucket; grant them access to it"
        ),
        "ExpiredToken": f"{token}: it has expired",
        "InvalidToken": f"{token}: the object store does not accept it",
        "RequestTimeTooSkewed": "the clocks of this machine and of the object store differ; set them",
        "NoSuchBucket": f"{variables.bucket}: the bucket does not exist; create it",
        "InvalidBucketName": f"{variables.bucket}: the object store does not accept this name",
        "AuthorizationHeaderMalformed": f"{region}: the bucket is in another region",
        "PermanentRedirect": f"{region}: the bucket is in another region",
    }


def find_causes(error: BaseException | None) -> Iterator[BaseException]:
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
