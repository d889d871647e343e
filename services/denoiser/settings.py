"""Settings of the denoiser: `CHORUS_DENOISER_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from chorus_rpc.limits import DEFAULT_MAX_BLOB_BYTES
from pydantic import BeforeValidator, Field, FilePath, SecretStr
from pydantic_settings import NoDecode, SettingsConfigDict

from services.runtime.settings import MIB, ROOT, Key, Port, Seconds, ServerSettings, Target, split_list

SHIPPED_MODEL = ROOT / "models" / "shapes" / "model.toml"

DonorDtype: TypeAlias = Literal["float32", "bfloat16"]


class DenoiserSettings(ServerSettings):
    """Environment of `python -m services.denoiser`."""

    model_config = SettingsConfigDict(env_prefix="CHORUS_DENOISER_")

    port: Port = 7403

    models: Annotated[
        tuple[FilePath, ...], NoDecode, BeforeValidator(split_list), Field(min_length=1, max_length=16)
    ] = (SHIPPED_MODEL,)
    """Model files, comma separated. All are loaded at start; the first is the default model."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    """Device that runs the models: cpu, cuda or cuda:N."""
    backend: Literal["auto", "torch", "compiled", "onnxruntime", "tensorrt"] = "auto"
    """Backend that runs a denoising step; see docs/backends.md. "auto" is onnxruntime on a CPU and torch on a
    CUDA device; "onnxruntime" exports the model at its first start, which takes about 15 seconds; "compiled"
    is torch's compiler and adds about a minute to the start; "tensorrt" is TensorRT or TensorRT-RTX and
    requires a CUDA device."""
    backend_fallback: bool = True
    """Whether torch runs the steps that the backend cannot run. If false, such a request fails. Every step
    event names the backend used."""
    amplified_kernel: bool = False
    """Whether the backend torch runs amplified cross-attention in the project's own kernel. On a CUDA device
    it requires Triton; on the CPU it is slower than torch."""
    engines: Path = Path(".chorus/engines")
    """Directory of exported graphs and built engines."""
    engine_build: bool = True
    """Whether a missing engine is built at start. If false, only an engine built by `chorus engine build` is
    used."""
    engine_wait_seconds: Annotated[float, Field(ge=0, le=86_400)] = 7_200.0
    """Upper bound on the wait for another process that builds the same engine, in seconds."""
    engine_precision: Literal["bfloat16", "float16"] = "bfloat16"
    """Floating-point type that an engine computes in."""
    engine_fp8: bool = False
    """Whether the matrix products of the transformer blocks use 8-bit floats. It requires compute capability
    8.9 or higher."""
    engine_blocks: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Number of transformer blocks in one engine; 0: all of them. An engine of fewer blocks
    requires less memory to build."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Number of CPU threads for one step; 0: the number of physical cores."""
    queue_limit: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Upper bound on the calls that wait while one runs."""

    cache_target: Target = "127.0.0.1:7402"
    """Address of the cache: host:port, or any gRPC name."""
    cache_key: Key = SecretStr("")
    """Key that the cache expects of this service, CHORUS_CACHE_DENOISER_KEY; empty if it expects none."""
    fetch_seconds: Seconds = 5.0
    """Upper bound on the wait for a donor's latents, in seconds. After it, the request is computed in full,
    and the cache is not called again until it answers a health check."""
    admit_seconds: Seconds = 30.0
    """Upper bound on the admission of a result to the cache, in seconds. The next run does not wait for
    it."""
    max_admissions: Annotated[int, Field(ge=1, le=1_000)] = 8
    """Upper bound on the results that are being admitted to the cache; further results are not admitted."""
    max_admission_bytes: Annotated[int, Field(ge=1024, le=65_536 * MIB)] = 512 * MIB
    """Upper bound on the latents and side data of all results that are being admitted, in bytes; further
    results are not admitted. One result alone may be larger."""
    max_blob_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = DEFAULT_MAX_BLOB_BYTES
    """Upper bound on the latents of one step boundary, in bytes."""
    donor_dtype: DonorDtype = "bfloat16"
    """Type in which the cache keeps the latents of the steps before the last. "bfloat16" takes half the space
    of "float32". The clean latents, which exact repeats decode, are always kept in float32."""
    run_seconds: Seconds = 3_600.0
    """Upper bound on the duration of a run, in seconds, even if the caller's deadline is later."""

    @property
    def computes_in_fp8(self) -> bool:
        """Whether the configured backend computes in 8-bit floats."""
        return self.backend == "tensorrt" and self.engine_fp8
