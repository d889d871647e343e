"""Faults of a Milvus server at start: those that time cannot cure, as one line with setting and remedy."""

from __future__ import annotations

import re

import grpc
from pymilvus.exceptions import ConnectionConfigException, MilvusException, ParamError

from services.cache.certificates import TlsFault
from services.object_store.faults import find_causes

_MILVUS_TOKEN = "CHORUS_CACHE_MILVUS_TOKEN: the server refuses it"
_REFUSED_TOKEN = re.compile(r"auth check failure|not authenticated|unauthenticated", re.IGNORECASE)


def describe_milvus_fault(error: BaseException, uri: str) -> str | None:
    """Returns why no retry of the connection to a server can succeed; None if time may cure the error."""
    for cause in find_causes(error):
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
