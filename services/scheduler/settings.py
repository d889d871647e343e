"""Settings of the scheduler: `CHORUS_SCHEDULER_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from chorus_rpc.limits import MAX_DEADLINE_SECONDS, MAX_DONORS, TENANT_PATTERN
from chorus_rpc.tenancy import DEFAULT_TENANT
from pydantic import AfterValidator, BeforeValidator, Field, FilePath, SecretStr, StringConstraints
from pydantic_settings import NoDecode, SettingsConfigDict

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
from services.scheduler.database_location import check_location


class SchedulerSettings(ServerSettings):
    """Environment of `python -m services.scheduler`."""

    model_config = SettingsConfigDict(env_prefix="CHORUS_SCHEDULER_")

    port: Port = 7400
    max_concurrent_calls: Annotated[int, Field(ge=1, le=10_000)] = 2_000
    """Upper bound on concurrent calls. Every watcher occupies one call until its generation ends."""

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
    max_video_bytes: Annotated[int, Field(ge=64 * 1024, le=4096 * MIB)] = 256 * MIB
    """Upper bound on one video, in bytes."""
    keep_generations: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    """Number of ended generations to keep, with their videos and request ids; the oldest go first."""
    keep_days: Annotated[float, Field(gt=0, le=36_500)] = 30.0
    """Days for which an ended generation is kept, if its number allows."""

    tenant: Annotated[str, StringConstraints(pattern=f"^{TENANT_PATTERN}$")] = DEFAULT_TENANT
    """Tenant that owns every job of this scheduler; clients cannot override it."""
    queue_limit: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    """Upper bound on the jobs that wait in the queue."""
    class_seconds: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    """Seconds of waiting that a class of priority counts as; also the bound on the delay by expected work."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 1
    """Number of jobs sent to each denoiser concurrently."""
    default_model: Annotated[str, Field(max_length=256)] = ""
    """Id of the model for requests that name none; empty: the first model of the denoiser."""
    default_reuse: Literal["off", "safe", "balanced", "fast"] = "balanced"
    """Reuse policy for requests that name none."""
    default_deadline_seconds: Annotated[float, Field(ge=1, le=MAX_DEADLINE_SECONDS)] = 3_600.0
    """Time from submission to the deadline for requests that set none, in seconds."""

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
