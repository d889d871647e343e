"""Settings every service has; each adds its own fields.

A field `milvus_uri` of the cache is the environment variable `CHORUS_CACHE_MILVUS_URI`.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20

Seconds = Annotated[float, Field(gt=0, le=86_400)]
# "host:port", or any gRPC name such as "dns:///cache:7402".
Target = Annotated[str, Field(min_length=3, max_length=512)]


class ServerSettings(BaseSettings):
    """What every server takes. Subclasses set `env_prefix` and a default port."""

    model_config = SettingsConfigDict(extra="ignore")

    # The address to listen on; 0.0.0.0 in a container.
    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    # 0 takes a free port, which the log names.
    port: Annotated[int, Field(ge=0, le=65_535)] = 0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    # "json" for a log collector.
    log_format: Literal["console", "json"] = "console"
    # After SIGTERM: how long running calls may take to end.
    drain_seconds: Seconds = 20.0
    # How long loading may take before the process gives up.
    startup_seconds: Seconds = 300.0
    # The longest a call may take, also where its caller set no deadline. Streams of jobs are not cut.
    call_seconds: Seconds = 60.0
    # Streams send chunks of about 1 MiB; the largest message is text states, 8 MiB for UMT5's 512 tokens.
    max_message_bytes: Annotated[int, Field(ge=64 * 1024, le=64 * MIB)] = 16 * MIB
    # Calls beyond are refused with RESOURCE_EXHAUSTED.
    max_concurrent_calls: Annotated[int, Field(ge=1, le=10_000)] = 256


S = TypeVar("S", bound=ServerSettings)


def load_settings(kind: type[S]) -> S:
    """Settings from the environment; a wrong one ends the process with status 2 and a line that names it."""
    try:
        return kind()
    except ValidationError as error:
        prefix = kind.model_config.get("env_prefix", "")
        for fault in error.errors():
            name = prefix + "_".join(str(part) for part in fault["loc"]).upper()
            print(f"{name}: {fault['msg']} (got {fault.get('input')!r})", file=sys.stderr)
        raise SystemExit(2) from None
