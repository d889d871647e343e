"""Settings of the cache: `CHORUS_CACHE_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from chorus_rpc.limits import DEFAULT_MAX_BLOB_BYTES, MAX_PROMPT_BYTES
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import MIB, Seconds, ServerSettings


class CacheSettings(ServerSettings):
    """Environment of `python -m services.cache`."""

    model_config = SettingsConfigDict(env_prefix="CHORUS_CACHE_", extra="ignore", validate_default=True)

    port: Annotated[int, Field(ge=0, le=65_535)] = 7402

    # A path ending in ".db" is Milvus Lite in this process; http(s)://host:port is a server.
    milvus_uri: Annotated[str, Field(min_length=4, max_length=1024)] = ".chorus/milvus.db"
    # "user:password" or an API key; empty for a server without authentication.
    milvus_token: SecretStr = SecretStr("")
    # The longest wait for one operation of the index, its place in the queue included.
    milvus_seconds: Seconds = 10.0
    # Operations at once on a Milvus server. Milvus Lite always gets one: parallel writers corrupt its log.
    milvus_threads: Annotated[int, Field(ge=1, le=64)] = 8

    blobs: Literal["directory", "s3"] = "directory"
    blob_dir: Path = Path(".chorus/blobs")
    # The longest wait for one operation on one blob.
    blob_seconds: Seconds = 30.0
    blob_threads: Annotated[int, Field(ge=1, le=64)] = 8
    # "host:port", without a scheme.
    s3_endpoint: str = ""
    # Created when it does not exist.
    s3_bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] = "chorus"
    s3_access_key: SecretStr = SecretStr("")
    s3_secret_key: SecretStr = SecretStr("")
    # Whether to speak TLS.
    s3_secure: bool = True
    # Empty: the client asks the server.
    s3_region: str = ""

    max_prompt_bytes: Annotated[int, Field(ge=1, le=MAX_PROMPT_BYTES)] = MAX_PROMPT_BYTES
    # One blob, that is the latents of one step or the side data; and all blobs of an entry.
    max_blob_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = DEFAULT_MAX_BLOB_BYTES
    max_entry_bytes: Annotated[int, Field(ge=1024, le=4096 * MIB)] = 256 * MIB
    # Entries being received at once: each is held in memory until it is whole and verified.
    max_uploads: Annotated[int, Field(ge=1, le=256)] = 4

    # How often leftovers are looked for.
    sweep_seconds: Seconds = 300.0
    # How long a blob that no row names, or a row whose blob is missing, is left alone. Must be longer than an
    # admission takes to write its blobs and its row, and than a reader takes to fetch an entry just purged.
    grace_seconds: Seconds = 600.0

    @field_validator("milvus_uri")
    @classmethod
    def _known_uri(cls, value: str) -> str:
        if not value.endswith(".db") and not value.startswith(("http://", "https://")):
            raise ValueError("must be a path that ends in .db (Milvus Lite) or http(s)://host:port")
        return value

    @field_validator("s3_endpoint", "s3_access_key", "s3_secret_key")
    @classmethod
    def _set_for_s3(cls, value: str | SecretStr, info: ValidationInfo) -> str | SecretStr:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if info.data.get("blobs") == "s3" and not text:
            raise ValueError("must be set when CHORUS_CACHE_BLOBS is s3")
        if "://" in text and info.field_name == "s3_endpoint":
            raise ValueError("must be host:port without a scheme; CHORUS_CACHE_S3_SECURE decides about TLS")
        return value

    @property
    def milvus_lite(self) -> bool:
        return self.milvus_uri.endswith(".db")
