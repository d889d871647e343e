"""Selects the backend of a model according to the settings."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Final

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

# Packages that export the graph and run it.
_ONNX_PACKAGES: Final = ("onnx", "onnxruntime", "onnxscript")
# Largest weights for which "auto" selects onnxruntime, in bytes: its session holds a copy of them, and the
# export of larger ones takes minutes.
_AUTO_MAX_BYTES: Final = 1 << 30
# Graphs of a model that stay in the store in addition to the one in use, for other versions of its weights or
# of the code.
_KEPT_GRAPHS: Final = 7


def select_backend(model: LoadedModel) -> tuple[str, str]:
    """Returns the backend that "auto" stands for, and the reason."""
    if model.device.type != "cpu":
        return "torch", f"the device is {model.device}"
    if model.dtype != torch.float32:
        return "torch", f"the model computes in {str(model.dtype).removeprefix('torch.')}"
    size = sum(parameter.nbytes for parameter in model.transformer.parameters())
    if size > _AUTO_MAX_BYTES:
        return "torch", f"the weights have {size} bytes, more than {_AUTO_MAX_BYTES}"
    if missing := [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]:
        return "torch", f"not installed: {', '.join(missing)}"
    return "onnxruntime", "the device is a CPU"


def choose_backend(model: LoadedModel, settings: DenoiserSettings, report: Progress) -> Backend:
    """Creates the configured backend and builds the engine it needs.

    If fallback is enabled, torch runs the steps that the backend cannot, and every step reports the reason.

    Args:
        report: Progress callback for a build. Return False to cancel.

    Raises:
        BackendError: The backend is not available and fallback is disabled.
    """
    name: str = settings.backend
    if name == "auto":
        name, reason = select_backend(model)
        log.info("backend selected", model_id=model.spec.id, backend=name, reason=reason)
    eager = EagerBackend(model.transformer, kernel=_should_use_kernel(model, settings))
    if name == "torch":
        return eager
    try:
        with as_backend_error(name):
            primary = _create_backend(name, model, settings, report)
    except BackendError as error:
        if not settings.backend_fallback:
            raise
        log.warning("backend not available; torch runs every step", backend=name, reason=str(error))
        primary = Unavailable(name, str(error))
    return Fallback(primary, eager, allowed=settings.backend_fallback)


def _should_use_kernel(model: LoadedModel, settings: DenoiserSettings) -> bool:
    """Returns whether the amplified attention kernel is enabled and works; it runs once here."""
    if not settings.amplified_kernel:
        return False
    try:
        with as_backend_error("amplified attention"):
            config, dtype = model.transformer.config, model.dtype
            q = torch.zeros(1, config.heads, 2, config.head_dim, dtype=dtype, device=model.device)
            [attention] = build_kernel_attention([LayerAmplification(other=(q, q), strength=1.0)])
            assert attention is not None
            attention(q, q, q, None)
    except BackendError as error:
        if not settings.backend_fallback:
            raise
        log.warning("kernel not available; using torch's attention", reason=str(error))
        return False
    return True


def _create_backend(name: str, model: LoadedModel, settings: DenoiserSettings, report: Progress) -> Backend:
    if name == "compiled":
        from services.denoiser.backends.compiled import compiled_backend

        return compiled_backend(model.transformer)
    if name == "onnxruntime":
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
        engine = ensure_engine(model, options, store, report)
    else:
        engine = find_engine(model, options, store)
    backend = load_engine(model, engine, options)
    if settings.engine_build and name == "onnxruntime":  # a graph is exported again within seconds
        store.prune(engine, _KEPT_GRAPHS)
    return backend
