"""Settings of the cache: `CHORUS_CACHE_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from chorus_rpc.limits import DEFAULT_MAX_BLOB_BYTES, MAX_PROMPT_BYTES
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import MIB, Port, Seconds, ServerSettings


class CacheSettings(ServerSettings):
    """Environment of `python -m services.cache`."""

    model_config = SettingsConfigDict(env_prefix="CHORUS_CACHE_", validate_default=True)

    port: Port = 7402

    milvus_uri: Annotated[str, Field(min_length=4, max_length=1024)] = ".chorus/milvus.db"
    """Location of the vector index: a path that ends in ".db" for Milvus Lite in this process, or
    http(s)://host:port for a server."""
    milvus_token: SecretStr = SecretStr("")
    """Credentials of the Milvus server, "user:password" or an API key; empty without authentication."""
    milvus_seconds: Seconds = 10.0
    """Upper bound on one operation of the index, in seconds, including the time in its queue."""
    milvus_threads: Annotated[int, Field(ge=1, le=64)] = 8
    """Number of concurrent operations on a Milvus server. Milvus Lite always gets one: parallel writers
    corrupt its log."""

    blobs: Literal["directory", "s3"] = "directory"
    """Object store that holds the latents."""
    blob_dir: Path = Path(".chorus/blobs")
    """Directory of the latents, with CHORUS_CACHE_BLOBS=directory."""
    blob_seconds: Seconds = 30.0
    """Upper bound on one operation on one blob, in seconds."""
    blob_threads: Annotated[int, Field(ge=1, le=64)] = 8
    """Number of concurrent operations on the object store."""
    s3_endpoint: str = ""
    """Endpoint of the object store, "host:port" without a scheme; required for s3."""
    s3_bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] = "chorus"
    """Name of the bucket, which is created if it does not exist."""
    s3_access_key: SecretStr = SecretStr("")
    """Access key of the object store; required for s3."""
    s3_secret_key: SecretStr = SecretStr("")
    """Secret key of the object store; required for s3."""
    s3_secure: bool = True
    """Whether connections to the object store use TLS."""
    s3_region: str = ""
    """Region of the bucket; empty: the client asks the server."""

    max_prompt_bytes: Annotated[int, Field(ge=1, le=MAX_PROMPT_BYTES)] = MAX_PROMPT_BYTES
    """Upper bound on the prompt of an entry, in bytes of UTF-8."""
    max_blob_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = DEFAULT_MAX_BLOB_BYTES
    """Upper bound on one blob, in bytes: the latents of one step boundary, or the side data."""
    max_entry_bytes: Annotated[int, Field(ge=1024, le=4096 * MIB)] = 256 * MIB
    """Upper bound on all blobs of one entry together, in bytes."""
    max_uploads: Annotated[int, Field(ge=1, le=256)] = 4
    """Number of entries received concurrently. Each is held in memory until it is complete and verified."""

    sweep_seconds: Seconds = 300.0
    """Interval between two sweeps for orphaned blobs and rows, in seconds."""
    grace_seconds: Seconds = 600.0
    """Age below which a sweep keeps a blob that no row names, and a row whose blob is missing, in seconds.
    It must exceed the time an admission takes to write its blobs and its row, and the time a reader takes to
    fetch an entry that was just purged."""

    @field_validator("milvus_uri")
    @classmethod
    def _check_uri(cls, value: str) -> str:
        if not value.endswith(".db") and not value.startswith(("http://", "https://")):
            raise ValueError("must be a path that ends in .db (Milvus Lite) or http(s)://host:port")
        return value

    @field_validator("s3_endpoint", "s3_access_key", "s3_secret_key")
    @classmethod
    def _require_for_s3(cls, value: str | SecretStr, info: ValidationInfo) -> str | SecretStr:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if info.data.get("blobs") == "s3" and not text:
            raise ValueError("must be set when CHORUS_CACHE_BLOBS is s3")
        if "://" in text and info.field_name == "s3_endpoint":
            raise ValueError("must be host:port without a scheme; CHORUS_CACHE_S3_SECURE selects TLS")
        return value
