"""Settings of the scheduler: `CHORUS_SCHEDULER_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from chorus_rpc.addresses import is_loopback_host
from chorus_rpc.limits import MAX_DEADLINE_SECONDS, MAX_DONORS, MAX_URL_SECONDS, TENANT_PATTERN
from chorus_rpc.tenancy import DEFAULT_TENANT
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FilePath,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import NoDecode, SettingsConfigDict

from services.object_store.validation import CredentialsSource, check_endpoint, check_key, check_source
from services.runtime.certificates import check_ca_file
from services.runtime.settings import (
    MIB,
    Key,
    Port,
    Seconds,
    ServerSettings,
    Target,
    check_distinct,
    split_list,
)
from services.runtime.tls import ServerTls
from services.scheduler import video_location
from services.scheduler.database_location import check_location
from services.scheduler.webhook_addresses import parse_rules


def _check_allowed(value: tuple[str, ...]) -> tuple[str, ...]:
    parse_rules(value)
    return value


PathText = Annotated[str, Field(max_length=4096)]


class SchedulerSettings(ServerSettings):
    """Environment of `python -m services.scheduler`."""

    # Defaults are validated too: some settings are required depending on others.
    model_config = SettingsConfigDict(env_prefix="CHORUS_SCHEDULER_", validate_default=True)

    port: Port = 7400
    max_concurrent_calls: Annotated[int, Field(ge=1, le=10_000)] = 2_000
    """Upper bound on concurrent calls. Every watcher occupies one call until its generation ends."""

    api_keys: PathText = ""
    """File with the hashes of the API keys, each of a tenant; `chorus keys` writes it. It is read again when
    it changes. Empty: callers need no key, and the scheduler listens on loopback only."""
    trusted_network: bool = False
    """Whether everyone who can reach the port may use the API. If true, the scheduler listens on any address
    without API keys."""
    tls_certificate: PathText = ""
    """PEM file with the certificate of the port, followed by those of intermediate authorities, read at the
    start; empty: no TLS."""
    tls_key: PathText = ""
    """PEM file with the private key of CHORUS_SCHEDULER_TLS_CERTIFICATE."""
    tls_client_ca: PathText = ""
    """PEM file with the authorities of the clients' certificates, which the port then requires; empty: it
    requires none."""
    health_port: Port = 0
    """TCP port that answers health checks alone, without TLS, for probes that do not support it; 0: none."""

    embedder_target: Target = "127.0.0.1:7401"
    """Address of the embedder: host:port, or any gRPC name."""
    cache_target: Target = "127.0.0.1:7402"
    """Address of the cache: host:port, or any gRPC name."""
    cache_key: Key = SecretStr("")
    """Key that the cache expects of this service, CHORUS_CACHE_SCHEDULER_KEY; empty if it expects none."""
    denoiser_target: Annotated[
        tuple[Target, ...],
        NoDecode,
        BeforeValidator(split_list),
        Field(min_length=1, max_length=64),
        AfterValidator(check_distinct),
    ] = ("127.0.0.1:7403",)
    """Addresses of the denoisers, comma separated: host:port, or any gRPC name, for one denoiser;
    dns:///host:port for one at each address that the host has in DNS, such as a headless service."""
    resolve_seconds: Annotated[float, Field(ge=0.1, le=3_600)] = 5.0
    """Time between two DNS queries for the denoisers of dns:///host:port, in seconds."""

    database: Annotated[str, Field(max_length=1024), AfterValidator(check_location)] = ".chorus/jobs.db"
    """Database of the jobs: the path of an SQLite file, or the URL of a PostgreSQL database, such as
    postgresql://chorus@db:5432/chorus?sslmode=verify-full, which several schedulers may share."""
    database_password: SecretStr = SecretStr("")
    """Password of the PostgreSQL database; empty if it needs none."""
    lease_seconds: Annotated[float, Field(ge=2, le=600)] = 15.0
    """Time after which schedulers that share a database requeue the jobs of a silent one, in seconds."""
    video_dir: Path = Path(".chorus/videos")
    """Directory of the finished videos. Schedulers that share a database share it too."""
    video_store: Annotated[str, Field(max_length=512), AfterValidator(video_location.check_location)] = ""
    """Folder of the finished videos in an object store, such as s3://bucket/videos, in place of
    CHORUS_SCHEDULER_VIDEO_DIR; a bucket that does not exist is created. Schedulers that share a database
    share it too. Empty: the directory."""
    video_seconds: Seconds = 30.0
    """Upper bound on one operation on the object store of the videos, in seconds."""
    video_url_seconds: Annotated[int, Field(ge=1, le=MAX_URL_SECONDS)] = 3_600
    """Lifetime of the URL of a video for requests that state none, in seconds."""
    s3_endpoint: Annotated[str, Field(max_length=512)] = ""
    """Endpoint of the object store of the videos, "host:port" without a scheme; required for s3. URLs of
    videos begin with it."""
    s3_credentials: CredentialsSource = "keys"
    """Source of the credentials of the object store. "keys": CHORUS_SCHEDULER_S3_ACCESS_KEY and _SECRET_KEY.
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
    CHORUS_SCHEDULER_S3_STS_ENDPOINT; empty: the system's."""
    s3_region: str = ""
    """Region of the bucket; empty: the client asks the server."""
    max_video_bytes: Annotated[int, Field(ge=64 * 1024, le=4096 * MIB)] = 256 * MIB
    """Upper bound on one video, in bytes."""
    keep_generations: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    """Number of ended generations to keep, with their videos and request ids; the oldest go first."""
    keep_days: Annotated[float, Field(gt=0, le=36_500)] = 30.0
    """Days for which an ended generation is kept, if its number allows."""

    tenant: Annotated[str, StringConstraints(pattern=f"^{TENANT_PATTERN}$")] = DEFAULT_TENANT
    """Tenant that owns every job of this scheduler if callers need no key; clients cannot override it."""
    tenant_requests_per_minute: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Upper bound on the submissions and previews of a tenant per minute, at each scheduler; 0: none."""
    tenant_burst: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Submissions and previews that a tenant may send at once after a pause, if they are limited."""
    tenant_concurrency: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Upper bound on the runs of one tenant at once, over all schedulers of the database; 0 for none."""
    tenant_unfinished_limit: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Upper bound on the generations of a tenant that have not ended, in the whole database; 0: only
    the limit of the queue."""
    queue_limit: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    """Upper bound on the jobs that wait in the queue."""
    class_seconds: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    """Seconds of waiting that a class of priority counts as; also the bound on the delay by expected work."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 1
    """Number of jobs sent to each denoiser concurrently."""
    wait_for_donors: bool = True
    """Whether a generation waits for a run under way whose latents save more than the wait costs."""
    resume_bytes: Annotated[int, Field(ge=0, le=65_536 * MIB)] = 512 * MIB
    """Upper bound on the memory for interrupted runs, which continue where they stopped, in bytes. 0: they
    start again, and none gives way to a generation of a higher priority."""
    default_model: Annotated[str, Field(max_length=256)] = ""
    """Id of the model for requests that name none; empty: the first model of the denoiser."""
    default_reuse: Literal["off", "safe", "balanced", "fast"] = "balanced"
    """Reuse policy for requests that name none."""
    default_deadline_seconds: Annotated[float, Field(ge=1, le=MAX_DEADLINE_SECONDS)] = 3_600.0
    """Time from submission to the deadline for requests that set none, in seconds."""

    webhook_secrets: PathText = ""
    """JSON file with the signing secrets of the webhooks, one or two for each tenant, such as
    {"default": ["whsec_…"]}. It is read again when it changes. Empty: requests with a webhook are refused."""
    webhook_allowed: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(split_list),
        Field(max_length=64),
        AfterValidator(check_distinct),
        AfterValidator(_check_allowed),
    ] = ()
    """Networks and host names, comma separated, such as 10.1.0.0/16, to which webhooks may be sent in
    addition to public addresses."""
    webhook_ca: Annotated[str, Field(max_length=4096), AfterValidator(check_ca_file)] = ""
    """PEM file with the authorities that may have signed the certificates of webhook receivers, read at the
    start; empty: the system's."""
    webhook_concurrency: Annotated[int, Field(ge=1, le=256)] = 16
    """Upper bound on the webhooks that this scheduler sends at once; one tenant may have a quarter of
    them."""
    webhook_attempt_seconds: Annotated[float, Field(ge=0.1, le=120)] = 10.0
    """Upper bound on one attempt to send a webhook, until the receiver's status, in seconds."""
    webhook_retry_seconds: Annotated[float, Field(ge=0.01, le=3_600)] = 5.0
    """Longest pause after the first failed attempt to send a webhook, in seconds; each further one is twice
    as long."""
    webhook_max_retry_seconds: Annotated[float, Field(ge=0.01, le=86_400)] = 3_600.0
    """Upper bound on the pause between two attempts to send a webhook, in seconds."""
    webhook_give_up_seconds: Annotated[float, Field(ge=1, le=604_800)] = 86_400.0
    """Time from the end of a generation after which its webhook is given up, in seconds."""
    webhook_pending_limit: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Number of webhooks of a tenant that wait for their receivers at which its requests with a webhook are
    refused."""

    donor_limit: Annotated[int, Field(ge=1, le=MAX_DONORS)] = 8
    """Upper bound on the donors that the planner chooses from."""
    compare_prompts: bool = True
    """Whether the planner uses the edit between a donor's prompt and the request's. If false, it uses their
    similarity alone."""
    calibrations: Annotated[
        tuple[FilePath, ...], NoDecode, BeforeValidator(split_list), Field(max_length=64)
    ] = ()
    """Calibration files of served models, comma separated, in addition to those that ship; `chorus calibrate`
    writes them."""
    lookup_seconds: Seconds = 2.0
    """Upper bound on a cache lookup, in seconds."""
    align_seconds: Seconds = 2.0
    """Upper bound on the alignment of the prompts, in seconds."""
    embed_seconds: Seconds = 30.0
    """Upper bound on the embedding of a prompt, in seconds."""
    admission_seconds: Seconds = 1.0
    """Time after the end of a run during which a lookup of the same model, shape and schedule waits for the
    admission of its latents, in seconds. After an admission that took longer, no lookup waits until one is on
    time again."""
    retry_seconds: Annotated[float, Field(ge=0.1, le=60)] = 2.0
    """Upper bound on the pause between two attempts to reach an unavailable service, in seconds."""
    max_crashes: Annotated[int, Field(ge=1, le=100)] = 5
    """Number of service crashes during one job after which the job fails."""

    @model_validator(mode="after")
    def _check_video_store(self) -> Self:
        if self.video_store and "video_dir" in self.model_fields_set:
            raise ValueError(
                f"{video_location.SETTING} and CHORUS_SCHEDULER_VIDEO_DIR exclude each other: set one of them"
            )
        return self

    @field_validator("s3_endpoint")
    @classmethod
    def _check_s3_endpoint(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("video_store") and not value:
            raise ValueError(f"must be set when {video_location.SETTING} is")
        return check_endpoint(value, "CHORUS_SCHEDULER_S3_SECURE")

    @field_validator("s3_credentials")
    @classmethod
    def _check_s3_credentials(cls, value: CredentialsSource, info: ValidationInfo) -> CredentialsSource:
        return check_source(value) if info.data.get("video_store") else value

    @field_validator("s3_access_key", "s3_secret_key", "s3_session_token")
    @classmethod
    def _check_s3_keys(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        source = info.data.get("s3_credentials")
        if not info.data.get("video_store") or source is None:
            return value
        optional = info.field_name == "s3_session_token"
        return check_key(value, source, "CHORUS_SCHEDULER_S3_CREDENTIALS", optional=optional)

    @field_validator("s3_ca")
    @classmethod
    def _check_s3_ca(cls, value: str, info: ValidationInfo) -> str:
        if value and not info.data.get("s3_secure", True):
            raise ValueError("must be empty when CHORUS_SCHEDULER_S3_SECURE is false")
        return check_ca_file(value)

    @model_validator(mode="after")
    def _check_webhook_pauses(self) -> Self:
        if self.webhook_max_retry_seconds < self.webhook_retry_seconds:
            raise ValueError(
                "CHORUS_SCHEDULER_WEBHOOK_MAX_RETRY_SECONDS must be at least"
                f" CHORUS_SCHEDULER_WEBHOOK_RETRY_SECONDS, {self.webhook_retry_seconds:g}, not"
                f" {self.webhook_max_retry_seconds:g}"
            )
        return self

    @property
    def tls(self) -> ServerTls | None:
        """Files of the port's TLS; None without TLS."""
        return self._tls_files if self.tls_certificate else None

    @property
    def _tls_files(self) -> ServerTls:
        return ServerTls(self.tls_certificate, self.tls_key, self.tls_client_ca)

    @model_validator(mode="after")
    def _check_access(self) -> Self:
        if not (is_loopback_host(self.host) or self.api_keys or self.trusted_network):
            raise ValueError(
                f"CHORUS_SCHEDULER_HOST is {self.host}, where other machines could use the API without a key:"
                " set CHORUS_SCHEDULER_API_KEYS to a file of keys (`chorus keys create`), or"
                " CHORUS_SCHEDULER_TRUSTED_NETWORK to true if everyone who reaches it may use it"
            )
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        self._tls_files.check_settings("CHORUS_SCHEDULER")
        if self.health_port and self.health_port == self.port:
            raise ValueError("CHORUS_SCHEDULER_HEALTH_PORT must differ from CHORUS_SCHEDULER_PORT")
        return self
