"""The backend that the settings ask for, for one model."""

from __future__ import annotations

from dataclasses import replace

import torch

from services.denoiser.backends.base import Backend, BackendError, Progress, as_backend_error
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.backends.fallback import Fallback, Unavailable
from services.denoiser.engines.build import ONNX, EngineOptions, ensure_engine, find_engine, load_engine
from services.denoiser.engines.store import EngineStore
from services.denoiser.kernels.cross_attention import build_kernel_attention
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.network.text import LayerAmplification
from services.denoiser.settings import DenoiserSettings
from services.runtime.logs import get_logger

log = get_logger("denoiser.backends")


def choose_backend(model: LoadedModel, settings: DenoiserSettings, report: Progress) -> Backend:
    """Makes it, and builds what it needs. Raises BackendError where it cannot and torch may not stand in.

    Where torch may, every step tells why it does. `report` may stop a build.
    """
    eager = EagerBackend(model.transformer, kernel=_kernel(model, settings))
    if settings.backend == "torch":
        return eager
    try:
        with as_backend_error(settings.backend):
            first = _make(model, settings, report)
    except BackendError as error:
        if not settings.backend_fallback:
            raise
        log.warning("backend not available", backend=settings.backend, reason=str(error))
        first = Unavailable(settings.backend, str(error))
    return Fallback(first, eager, allowed=settings.backend_fallback)


def _kernel(model: LoadedModel, settings: DenoiserSettings) -> bool:
    """Whether amplified attention goes through our own operator: asked for, and tried once here."""
    if not settings.amplified_kernel:
        return False
    try:
        with as_backend_error("amplified attention"):
            config, dtype = model.transformer.config, model.dtype
            q = torch.zeros(1, config.heads, 2, config.head_dim, dtype=dtype, device=model.device)
            [rule] = build_kernel_attention([LayerAmplification(other=(q, q), strength=1.0)])
            assert rule is not None
            rule(q, q, q, None)
    except BackendError as error:
        if not settings.backend_fallback:
            raise
        log.warning("kernel not available; torch's attention instead", reason=str(error))
        return False
    return True


def _make(model: LoadedModel, settings: DenoiserSettings, report: Progress) -> Backend:
    if settings.backend == "compiled":
        from services.denoiser.backends.compiled import compiled_backend

        return compiled_backend(model.transformer)
    if settings.backend == "onnxruntime":
        if model.device.type != "cpu":
            raise BackendError("onnxruntime: runs on the CPU; set CHORUS_DENOISER_DEVICE=cpu")
        options = replace(ONNX, blocks_each=settings.engine_blocks)
    else:
        if model.device.type != "cuda":
            raise BackendError("tensorrt: needs a CUDA device; set CHORUS_DENOISER_DEVICE=cuda")
        options = EngineOptions(
            precision=settings.engine_precision,
            fp8=settings.engine_fp8,
            blocks_each=settings.engine_blocks,
        )
    store = EngineStore(settings.engines, settings.engine_wait_seconds)
    if settings.engine_build:
        artefact = ensure_engine(model, options, store, report)
    else:
        artefact = find_engine(model, options, store)
    return load_engine(model, artefact, options)
