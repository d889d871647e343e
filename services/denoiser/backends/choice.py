"""The backend that the settings ask for, for one model."""

from __future__ import annotations

from dataclasses import replace

from services.common.logs import get_logger
from services.denoiser.backends import engines
from services.denoiser.backends.artefacts import ArtefactStore
from services.denoiser.backends.base import Backend, BackendError, Fallback, Unavailable
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.models.pipeline import LoadedModel
from services.denoiser.settings import DenoiserSettings

log = get_logger("denoiser.backends")


def choose_backend(model: LoadedModel, settings: DenoiserSettings) -> Backend:
    """Makes it, and builds what it needs. Raises BackendError where it cannot and torch may not stand in.

    Where torch may, every step tells why it does.
    """
    eager = EagerBackend(model.transformer, kernel=settings.amplified_kernel)
    if settings.backend == "torch":
        return eager
    try:
        first = _make(model, settings)
    except (BackendError, ImportError) as error:
        words = f"{error}; install chorus-serving[engine]" if isinstance(error, ImportError) else str(error)
        if not settings.backend_fallback:
            raise BackendError(words) from error
        log.warning("backend not available", backend=settings.backend, reason=words)
        first = Unavailable(settings.backend, words)
    return Fallback(first, eager, allowed=settings.backend_fallback)


def _make(model: LoadedModel, settings: DenoiserSettings) -> Backend:
    if settings.backend == "compiled":
        from services.denoiser.backends.compiled import compiled_backend

        return compiled_backend(model.transformer)
    if settings.backend == "onnxruntime":
        options = replace(engines.ONNX, blocks_each=settings.engine_blocks)
    else:
        if model.device.type != "cuda":
            raise BackendError("tensorrt: needs a CUDA device; set CHORUS_DENOISER_DEVICE=cuda")
        options = engines.EngineOptions(
            precision=settings.engine_precision, blocks_each=settings.engine_blocks
        )
    store = ArtefactStore(settings.engines, settings.engine_wait_seconds)
    if settings.engine_build:
        artefact = engines.build(model, options, store, lambda words: log.info("engine", progress=words))
    else:
        artefact = engines.find(model, options, store)
    return engines.load(model, artefact, options)
