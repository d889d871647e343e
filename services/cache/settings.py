"""Settings of the cache: `CHORUS_CACHE_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from chorus_rpc.limits import DEFAULT_MAX_BLOB_BYTES, MAX_LIFETIME_SECONDS, MAX_PROMPT_BYTES, TENANT_PATTERN
from chorus_rpc.tenancy import DEFAULT_TENANT
from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import NoDecode, SettingsConfigDict

from services.object_store.validation import CredentialsSource, check_endpoint, check_key, check_source
from services.runtime.certificates import check_ca_file
from services.runtime.settings import MIB, Key, Port, Seconds, ServerSettings, split_list, split_pairs


def _check_url(value: str) -> None:
    """Raises ValueError unless `value` names a host, and a valid port if any."""
    try:
        parts = urlsplit(value)
        valid = bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("must be http(s)://host:port, with a port from 1 to 65535")


class CacheSettings(ServerSettings):
    """Environment of `python -m services.cache`."""

    model_config = SettingsConfigDict(env_prefix="CHORUS_CACHE_", validate_default=True)

    port: Port = 7402

    scheduler_key: Key = SecretStr("")
    """Key of the scheduler, for lookups; empty: callers need no key. CHORUS_SCHEDULER_CACHE_KEY is the
    same."""
    denoiser_key: Key = SecretStr("")
    """Key of the denoiser, for fetches and admissions. CHORUS_DENOISER_CACHE_KEY is the same."""
    gateway_key: Key = SecretStr("")
    """Key of the gateway, for the console's page about the cache. CHORUS_GATEWAY_CONSOLE_CACHE_KEY is the
    same. If it is empty and the others are set, that page needs the operator's key."""
    operator_key: Key = SecretStr("")
    """Key of `chorus cache`, which reads this variable too. If it is empty and the others are set, entries
    cannot be listed, verified, purged or adopted."""
    keyless_tenants: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=rf"^({TENANT_PATTERN}|\*)$")], ...],
        NoDecode,
        BeforeValidator(split_list),
        Field(max_length=1_000),
    ] = (DEFAULT_TENANT,)
    """Tenants that are served if callers need no key, comma separated; "*": all. Whoever can reach the cache
    can read and write their entries."""

    shares: Annotated[
        tuple[
            Annotated[
                str, StringConstraints(pattern=rf"^{TENANT_PATTERN}={TENANT_PATTERN}$", max_length=127)
            ],
            ...,
        ],
        NoDecode,
        BeforeValidator(split_list),
        Field(max_length=1_000),
    ] = ()
    """Tenants that may reuse another's entries, "READER=OWNER" separated by commas: lookups of READER find
    the donors of OWNER too, with their prompts. Not the other way round, and not through a third tenant.
    Empty: every tenant finds its own entries only."""

    milvus_uri: Annotated[str, Field(min_length=4, max_length=1024)] = ".chorus/milvus.db"
    """Location of the vector index: a path that ends in ".db" for Milvus Lite in this process, or
    http(s)://host:port for a server."""
    milvus_token: SecretStr = SecretStr("")
    """Credentials of the Milvus server, "user:password" or an API key; empty without authentication."""
    milvus_ca: Annotated[str, Field(max_length=4096)] = ""
    """PEM file with the authorities that may have signed the certificate of an https:// Milvus server; empty:
    the public ones."""
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
    s3_credentials: CredentialsSource = "keys"
    """Source of the credentials of the object store. "keys": CHORUS_CACHE_S3_ACCESS_KEY and _SECRET_KEY.
    "environment": AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN. "role": temporary
    credentials of a web identity, a container or a machine, found in AWS's variables and renewed."""
    s3_access_key: SecretStr = SecretStr("")
    """Access key of the object store; required for s3 with keys."""
    s3_secret_key: SecretStr = SecretStr("")
    """Secret key of the object store; required for s3 with keys."""
    s3_session_token: SecretStr = SecretStr("")
    """Session token of temporary keys; empty for keys that do not expire."""
    s3_sts_endpoint: Annotated[str, Field(max_length=1024, pattern=r"^(https?://\S+)?$")] = ""
    """URL of the service that issues credentials for a role; empty: AWS's own."""
    s3_secure: bool = True
    """Whether connections to the object store use TLS."""
    s3_ca: Annotated[str, Field(max_length=4096)] = ""
    """PEM file with the authorities that may have signed the certificate of the object store, and of
    CHORUS_CACHE_S3_STS_ENDPOINT; empty: the system's."""
    s3_region: str = ""
    """Region of the bucket; empty: the client asks the server."""

    hot_bytes: Annotated[int, Field(ge=0, le=1 << 40)] = 256 * MIB
    """Memory for blobs that were read recently, in bytes; 0: none."""

    max_prompt_bytes: Annotated[int, Field(ge=1, le=MAX_PROMPT_BYTES)] = MAX_PROMPT_BYTES
    """Upper bound on the prompt of an entry, in bytes of UTF-8."""
    max_blob_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = DEFAULT_MAX_BLOB_BYTES
    """Upper bound on one blob, in bytes: the latents of one step boundary, or the side data."""
    max_entry_bytes: Annotated[int, Field(ge=1024, le=4096 * MIB)] = 256 * MIB
    """Upper bound on all blobs of one entry together, in bytes."""
    max_uploads: Annotated[int, Field(ge=1, le=256)] = 4
    """Number of entries received concurrently. Each is held in memory until it is complete and verified."""

    capacity_bytes: Annotated[int, Field(ge=MIB, le=1 << 50)] = 10 * 1024 * MIB
    """Upper bound on the blobs of all entries together, in bytes. Unless set, a directory holds at most a
    tenth of its disk. Entries that save the fewest seconds per byte are evicted first."""
    tenant_capacity_bytes: Annotated[int, Field(ge=0, le=1 << 50)] = 0
    """Upper bound on the blobs of one tenant's entries, in bytes; 0: CHORUS_CACHE_CAPACITY_BYTES."""
    low_water: Annotated[float, Field(ge=0.1, le=1.0)] = 0.97
    """Share of a bound down to which entries are evicted once it would be exceeded."""
    lifetime_seconds: Annotated[float, Field(ge=0, le=MAX_LIFETIME_SECONDS)] = 0.0
    """Time after its admission from which an entry is no longer found, in seconds; 0: for ever. A request may
    state less."""

    tenant_lifetimes: Annotated[
        dict[
            Annotated[str, StringConstraints(pattern=f"^{TENANT_PATTERN}$")],
            Annotated[float, Field(ge=0, le=MAX_LIFETIME_SECONDS)],
        ],
        NoDecode,
        BeforeValidator(split_pairs),
        Field(max_length=1_000),
    ] = {}  # noqa: RUF012
    """Lifetimes of some tenants' entries in place of CHORUS_CACHE_LIFETIME_SECONDS, "TENANT=SECONDS"
    separated by commas; 0: for ever."""

    sweep_seconds: Seconds = 300.0
    """Interval between two sweeps for orphaned blobs and rows, in seconds."""
    grace_seconds: Seconds = 600.0
    """Age below which a sweep keeps a blob that no row names, and a row whose blob is missing, in seconds.
    It must exceed the time an admission takes to write its blobs and its row, and the time a reader takes to
    fetch an entry that was just purged."""

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        names = ("scheduler_key", "denoiser_key", "gateway_key", "operator_key")
        keys = {name: getattr(self, name).get_secret_value() for name in names}
        given = [key for key in keys.values() if key]
        if given and not (keys["scheduler_key"] and keys["denoiser_key"]):
            raise ValueError(
                "CHORUS_CACHE_SCHEDULER_KEY and CHORUS_CACHE_DENOISER_KEY must both be set, or no key at all"
            )
        if len(set(given)) < len(given):
            raise ValueError("the keys of scheduler, denoiser, gateway and operator must differ")
        return self

    @field_validator("milvus_uri")
    @classmethod
    def _check_uri(cls, value: str) -> str:
        if not value.endswith(".db") and not value.startswith(("http://", "https://")):
            raise ValueError("must be a path that ends in .db (Milvus Lite) or http(s)://host:port")
        if not value.endswith(".db"):
            _check_url(value)
        if "://[" in value:
            # pymilvus 3.0 joins host and port without brackets.
            raise ValueError("must name the host, not its IPv6 address, to which pymilvus cannot connect")
        return value

    @field_validator("milvus_ca")
    @classmethod
    def _check_milvus_ca(cls, value: str, info: ValidationInfo) -> str:
        if value and not info.data.get("milvus_uri", "https://").startswith("https://"):
            raise ValueError("must be empty unless CHORUS_CACHE_MILVUS_URI begins with https://")
        return check_ca_file(value)

    @field_validator("s3_endpoint")
    @classmethod
    def _check_s3_endpoint(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("blobs") == "s3" and not value:
            raise ValueError("must be set when CHORUS_CACHE_BLOBS is s3")
        return check_endpoint(value, "CHORUS_CACHE_S3_SECURE")

    @field_validator("s3_credentials")
    @classmethod
    def _check_s3_credentials(cls, value: CredentialsSource, info: ValidationInfo) -> CredentialsSource:
        return check_source(value) if info.data.get("blobs") == "s3" else value

    @field_validator("s3_access_key", "s3_secret_key", "s3_session_token")
    @classmethod
    def _check_s3_keys(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        source = info.data.get("s3_credentials")
        if info.data.get("blobs") != "s3" or source is None:
            return value
        optional = info.field_name == "s3_session_token"
        return check_key(value, source, "CHORUS_CACHE_S3_CREDENTIALS", optional=optional)

    @field_validator("s3_ca")
    @classmethod
    def _check_s3_ca(cls, value: str, info: ValidationInfo) -> str:
        if value and not info.data.get("s3_secure", True):
            raise ValueError("must be empty when CHORUS_CACHE_S3_SECURE is false")
        return check_ca_file(value)
