"""Faults of Milvus Lite at start, which no wait cures: it runs in this process."""

from __future__ import annotations

from milvus_lite import MilvusLite
from milvus_lite.exceptions import DataDirLockedError, MilvusLiteError
from pymilvus.exceptions import ConnectionConfigException, MilvusException


def describe_lite_fault(error: BaseException, path: str) -> str | None:
    """Returns one line about a failure to open Milvus Lite: setting, cause and remedy; None if it is slow."""
    cause = error.__cause__ or error
    if isinstance(cause, TimeoutError):
        return None
    if isinstance(cause, ConnectionConfigException):
        # pymilvus drops the cause: it fails again.
        cause = _open_directly(path) or cause
    if isinstance(cause, DataDirLockedError):
        return (
            f"CHORUS_CACHE_MILVUS_URI: the index {path} is in use by another process: stop it, or set another"
            " path for this one"
        )
    if isinstance(cause, OSError):
        return f"CHORUS_CACHE_MILVUS_URI: the index {path} cannot be opened: {cause.strerror or cause}"
    text = cause.message if isinstance(cause, MilvusException) else str(cause)
    return (
        f"CHORUS_CACHE_MILVUS_URI: the index {path} is damaged: {text[:300]}; restore it, or move it away to"
        " start with an empty one and `chorus cache adopt`"
    )


def _open_directly(path: str) -> Exception | None:
    try:
        MilvusLite(path).close()
    except (MilvusLiteError, OSError, ValueError) as error:
        return error
    return None
