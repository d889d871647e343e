"""Settings of the denoiser: `CHORUS_DENOISER_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from chorus_rpc.limits import DEFAULT_MAX_BLOB_BYTES
from pydantic import BeforeValidator, Field, FilePath
from pydantic_settings import NoDecode, SettingsConfigDict

from services.runtime.settings import MIB, Seconds, ServerSettings, Target

# Beside the services, in a checkout as in an installation.
SHIPPED_MODEL = Path(__file__).resolve().parents[2] / "models" / "movingshapes" / "model.toml"


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


class DenoiserSettings(ServerSettings):
    """Environment of `python -m services.denoiser`."""

    model_config = SettingsConfigDict(env_prefix="CHORUS_DENOISER_", extra="ignore")

    port: Annotated[int, Field(ge=0, le=65_535)] = 7403

    # Model files, comma separated. All are loaded at start; the first is the default of those who ask.
    models: Annotated[
        tuple[FilePath, ...], NoDecode, BeforeValidator(_split), Field(min_length=1, max_length=16)
    ] = (SHIPPED_MODEL,)
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    # What runs a step: torch; compiled, by torch's compiler, which takes a minute or so at start;
    # onnxruntime, on the CPU; tensorrt, which is TensorRT or TensorRT-RTX, on a CUDA device. More in
    # docs/backends.md.
    backend: Literal["torch", "compiled", "onnxruntime", "tensorrt"] = "torch"
    # What the backend cannot run, torch runs, which every step's event tells. Where it may not: an error.
    backend_fallback: bool = True
    # With the backend torch, amplified cross-attention goes through the project's own kernel, which on a CUDA
    # device needs Triton; on the CPU it is slower.
    amplified_kernel: bool = False
    # Where graphs and engines are kept.
    engines: Path = Path(".chorus/engines")
    # An engine that is not there is built at start; where it may not be, only one of `chorus engine build` is
    # used.
    engine_build: bool = True
    # How long another process's build of the same engine is waited for.
    engine_wait_seconds: Annotated[float, Field(ge=0, le=86_400)] = 7_200.0
    # What an engine computes in.
    engine_precision: Literal["bfloat16", "float16"] = "bfloat16"
    # Whether the blocks' matrices are in 8 bits: compute capability 8.9 or later.
    engine_fp8: bool = False
    # Blocks of one engine; 0: all of them. Fewer take less memory to build.
    engine_blocks: Annotated[int, Field(ge=0, le=1_000)] = 0
    # Of the CPU, for one step; 0: as many as there are physical cores.
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    # Calls that may wait while one runs.
    queue_limit: Annotated[int, Field(ge=1, le=10_000)] = 16

    cache_target: Target = "127.0.0.1:7402"
    # How long a donor's latents may take to arrive before the request is computed in full.
    fetch_seconds: Seconds = 10.0
    # How long handing the result to the cache may take.
    admit_seconds: Seconds = 30.0
    # The most that one step's latents may take.
    max_blob_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = DEFAULT_MAX_BLOB_BYTES
    # The longest a run may take, also where its caller set no deadline.
    run_seconds: Seconds = 3_600.0
