"""Settings of the scheduler: `CHORUS_SCHEDULER_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from chorus_rpc.limits import MAX_DEADLINE_SECONDS, MAX_DONORS, TENANT_PATTERN
from chorus_rpc.tenancy import DEFAULT_TENANT
from pydantic import Field, StringConstraints
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import MIB, Seconds, ServerSettings, Target


class SchedulerSettings(ServerSettings):
    """Environment of `python -m services.scheduler`."""

    model_config = SettingsConfigDict(env_prefix="CHORUS_SCHEDULER_", extra="ignore")

    port: Annotated[int, Field(ge=0, le=65_535)] = 7400
    # Each watcher is a call for as long as its generation lives.
    max_concurrent_calls: Annotated[int, Field(ge=1, le=10_000)] = 2_000

    embedder_target: Target = "127.0.0.1:7401"
    cache_target: Target = "127.0.0.1:7402"
    denoiser_target: Target = "127.0.0.1:7403"

    database: Path = Path(".chorus/jobs.db")
    video_dir: Path = Path(".chorus/videos")
    max_video_bytes: Annotated[int, Field(ge=64 * 1024, le=4096 * MIB)] = 256 * MIB
    # How many ended generations are kept, with their videos and request ids; the oldest go first.
    keep_generations: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000

    # Whose jobs these are; clients cannot choose it.
    tenant: Annotated[str, StringConstraints(pattern=f"^{TENANT_PATTERN}$")] = DEFAULT_TENANT
    # How many jobs may wait for their turn.
    queue_limit: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    # How many jobs are given to the denoiser at once.
    concurrency: Annotated[int, Field(ge=1, le=256)] = 1
    # Empty: the first model that the denoiser names.
    default_model: Annotated[str, Field(max_length=256)] = ""
    default_reuse: Literal["off", "safe", "balanced", "fast"] = "balanced"
    default_deadline_seconds: Annotated[float, Field(ge=1, le=MAX_DEADLINE_SECONDS)] = 3_600.0

    # How many donors the planner may choose from.
    donor_limit: Annotated[int, Field(ge=1, le=MAX_DONORS)] = 8
    # How donors are compared with the request: by aligning the prompts, or by their similarity alone.
    reranker: Literal["alignment", "score"] = "alignment"
    lookup_seconds: Seconds = 2.0
    align_seconds: Seconds = 2.0
    embed_seconds: Seconds = 30.0
    # How long the end of a run may wait for its latents to be admitted before the next job starts.
    admission_seconds: Seconds = 30.0
    # The longest pause between two tries at a service that is missing.
    retry_seconds: Annotated[float, Field(ge=0.1, le=60)] = 2.0
    # How often a service may die during one job before the job is given up.
    max_crashes: Annotated[int, Field(ge=1, le=100)] = 5
