"""Faults of Milvus Lite at start, which no wait cures: it runs in this process."""

from __future__ import annotations

import errno

from chorus_rpc.errors import DISK_FULL, ChorusError
from milvus_lite import MilvusLite
from milvus_lite.exceptions import DataDirLockedError, MilvusLiteError
from pymilvus.exceptions import ConnectionConfigException, MilvusException

from services.cache.disk_space import is_full

# A lack of files or memory damages nothing. Milvus Lite passes on the text of the error.
_SHORT_TEXTS = tuple(f"[Errno {number}]" for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM))


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
    text = cause.message if isinstance(cause, MilvusException) else str(cause)
    if is_full(cause) or (isinstance(error, ChorusError) and error.reason == DISK_FULL):
        return (
            f"CHORUS_CACHE_MILVUS_URI: the disk of the index {path} is full: free space on the disk of"
            " CHORUS_CACHE_MILVUS_URI"
        )
    if any(short in text for short in _SHORT_TEXTS):
        return f"CHORUS_CACHE_MILVUS_URI: the index {path} cannot be opened: {text[:300]}"
    if isinstance(cause, OSError):
        return f"CHORUS_CACHE_MILVUS_URI: the index {path} cannot be opened: {cause.strerror or cause}"
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
