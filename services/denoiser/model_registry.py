"""The models served here: loaded, warmed, described."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event

import torch
from chorus.common.v1 import latents_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2

from services.denoiser.denoise import measure_step
from services.denoiser.device_thread import DeviceThread
from services.denoiser.engines.select import choose_backend
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.spec import Bound, SpecError
from services.denoiser.request import adapters_of, unknown_model
from services.denoiser.settings import DenoiserSettings
from services.runtime.logs import get_logger

log = get_logger("denoiser.catalogue")


class ModelRegistry:
    """Models by id, in the order of the settings. Made by `load_models`."""

    def __init__(self, models: Sequence[LoadedModel], worker: DeviceThread) -> None:
        self.models = {model.spec.id: model for model in models}
        self._worker = worker
        self._seconds_per_step: dict[str, float] = {}

    async def close(self) -> None:
        """Gives back what the backends hold, in the device's thread; before the worker is closed."""
        for model in self.models.values():
            await self._worker.call(model.backend.close)

    async def warm(self, model_id: str) -> denoiser_pb2.ModelInfo:
        """Runs one step and measures it; waits for the device. Raises UNKNOWN_MODEL."""
        model = self.models.get(model_id)
        if model is None:
            raise unknown_model(model_id, self.models)
        self._seconds_per_step[model_id] = await self._worker.call(lambda: measure_step(model))
        return self._describe(model)

    def describe(self) -> list[denoiser_pb2.ModelInfo]:
        return [self._describe(model) for model in self.models.values()]

    def _describe(self, model: LoadedModel) -> denoiser_pb2.ModelInfo:
        spec, codec = model.spec, model.codec
        return denoiser_pb2.ModelInfo(
            model_id=spec.id,
            weights_digest=model.weights_digest,
            adapters=adapters_of(model),
            conditioning_encoder_id=spec.text.encoder_id,
            codec=denoiser_pb2.CodecInfo(
                codec_id=codec.id,
                latent_channels=codec.latent_channels,
                temporal_factor=codec.temporal_factor,
                spatial_factor=codec.spatial_factor,
                causal=codec.causal,
            ),
            latent_dtype=latents_pb2.D_TYPE_FLOAT32,
            frames=_bound(spec.bounds.frames),
            height=_bound(spec.bounds.height),
            width=_bound(spec.bounds.width),
            steps=_bound(spec.bounds.steps),
            default_shape=video_pb2.VideoShape(
                frames=spec.video.frames, height=spec.video.height, width=spec.video.width
            ),
            default_schedule=latents_pb2.Schedule(sigmas=spec.schedule.sigmas),
            schedule_shift=spec.schedule.shift,
            seconds_per_step=self._seconds_per_step.get(spec.id, 0.0),
            backend=model.backend.name,
            fallback_steps=model.backend.fallback_steps,
        )


async def load_models(settings: DenoiserSettings, worker: DeviceThread, stopping: Event) -> ModelRegistry:
    """Loads and warms every model, in the worker's thread.

    Args:
        stopping: set where the process ends meanwhile, so that no build holds it up.

    Raises SpecError or WeightsError for a file that cannot be served, BackendError for a backend that cannot
    run and may not fall back, ValueError for a device that is missing.
    """

    def report(words: str) -> bool:
        log.info("engine", progress=words)
        return not stopping.is_set()

    def load() -> list[LoadedModel]:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        if settings.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device {settings.device}: torch finds no CUDA device; use cpu")
        models = [LoadedModel.load(path, settings.device) for path in settings.models]
        for model in models:
            model.backend = choose_backend(model, settings, report)
        return models

    models = await worker.call(load)
    for model in models:
        log.info("model loaded", model_id=model.spec.id, backend=model.backend.name)
    catalogue = ModelRegistry(models, worker)
    if len(catalogue.models) < len(models):
        raise SpecError(f"models: two have the same id: {[model.spec.id for model in models]}")
    for model_id in catalogue.models:
        await catalogue.warm(model_id)
    return catalogue


def _bound(bound: Bound) -> denoiser_pb2.Bound:
    return denoiser_pb2.Bound(min=bound.min, max=bound.max, multiple=bound.multiple)
