"""Loads, warms and describes the models that this denoiser serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Event

import torch
from chorus.common.v1 import latents_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc.errors import ChorusError

from services.denoiser.denoise import measure_step
from services.denoiser.device_thread import DeviceThread
from services.denoiser.engines.select import choose_backend
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.model.spec import Bound, ModelSpec, SpecError, load_spec
from services.denoiser.request import describe_adapters, unknown_model
from services.denoiser.settings import DenoiserSettings
from services.runtime.logs import get_logger
from services.runtime.startup import StartupError, progress

log = get_logger("denoiser.models")

# Upper bound on the fields of a request other than the token states, in bytes.
_OTHER_FIELDS_BYTES = 256 << 10


class ModelRegistry:
    """Models by id, in the order of the settings. Created by `load_models`.

    Attributes:
        models: Models by id.
        predictors: The same models with the backends that run them; closed by `close`.
    """

    def __init__(self, predictors: Sequence[Predictor], device_thread: DeviceThread) -> None:
        self.predictors = {predictor.model.spec.id: predictor for predictor in predictors}
        self.models = {model_id: predictor.model for model_id, predictor in self.predictors.items()}
        self._device_thread = device_thread
        self._seconds_per_step: dict[str, float] = {}

    async def close(self) -> None:
        """Releases the backends' resources, on the device thread; call it before that thread is closed."""
        for predictor in self.predictors.values():
            await self._device_thread.call(predictor.close)

    async def warm(self, model_id: str) -> denoiser_pb2.ModelInfo:
        """Runs one step and measures it; waits for the device. Raises UNKNOWN_MODEL."""
        predictor = self.predictors.get(model_id)
        if predictor is None:
            raise unknown_model(model_id, self.models)
        self._seconds_per_step[model_id] = await self._device_thread.call(lambda: measure_step(predictor))
        if (host := predictor.host) is not None:
            await self._device_thread.call(lambda: measure_step(host))
        return describe_model(predictor, self._seconds_per_step[model_id])

    def describe(self) -> list[denoiser_pb2.ModelInfo]:
        return [
            describe_model(predictor, self._seconds_per_step.get(model_id, 0.0))
            for model_id, predictor in self.predictors.items()
        ]


def describe_model(predictor: Predictor, seconds_per_step: float = 0.0) -> denoiser_pb2.ModelInfo:
    """Returns what the denoiser tells of a model."""
    model, backend, host = predictor.model, predictor.backend, predictor.host
    spec, codec = model.spec, model.codec
    return denoiser_pb2.ModelInfo(
        model_id=spec.id,
        weights_digest=model.weights_digest,
        model_digest=model.model_digest,
        adapters=describe_adapters(model),
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
        seconds_per_step=seconds_per_step,
        backend=backend.name,
        fallback_steps=backend.fallback_steps + (host.backend.fallback_steps if host else 0),
        sampler=spec.schedule.sampler,
        layers=spec.transformer.layers,
        max_text_tokens=spec.text.max_tokens,
        frames_per_second=spec.video.fps,
        host_adapter=None if host is None else describe_adapters(host.model)[-1],
    )


def check_message_sizes(path: Path, spec: ModelSpec, settings: DenoiserSettings) -> None:
    """Raises SpecError for token states larger than a message; warns of latents larger than a blob."""
    limit = settings.max_message_bytes
    if spec.largest_text_bytes + _OTHER_FIELDS_BYTES > limit:
        raise SpecError(
            f"{path}: text.max_tokens: {spec.text.max_tokens} token states take {spec.largest_text_bytes} "
            f"bytes, more than a message holds: raise CHORUS_DENOISER_MAX_MESSAGE_BYTES, now {limit}"
        )
    if spec.largest_latents_bytes > settings.max_blob_bytes:
        log.warning(
            "the largest videos of this model cannot be reused: raise CHORUS_DENOISER_MAX_BLOB_BYTES and the "
            "cache's limit",
            model_id=spec.id,
            latents_bytes=spec.largest_latents_bytes,
            max_blob_bytes=settings.max_blob_bytes,
        )


async def load_models(
    settings: DenoiserSettings, device_thread: DeviceThread, stopping: Event
) -> ModelRegistry:
    """Loads and warms every model, on the device thread.

    Args:
        stopping: Event that is set when the process must end, so that no engine build delays it.

    Raises SpecError or WeightsError for a file that cannot be served or a model that diverges, BackendError
    for a backend that cannot run and may not fall back, StartupError for a device that is missing or too
    small.
    """

    def report(words: str) -> bool:
        progress.waiting_for = words
        log.info("engine build progress", progress=words)
        return not stopping.is_set()

    def load() -> list[Predictor]:
        for path in settings.models:
            check_message_sizes(path, load_spec(path), settings)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        if settings.device.startswith("cuda") and not torch.cuda.is_available():
            raise StartupError(
                f"CHORUS_DENOISER_DEVICE: {settings.device}: torch finds no CUDA device; use cpu"
            )
        predictors = []
        try:
            for path in settings.models:
                progress.waiting_for = f"the model {path}"
                model = LoadedModel.load(path, settings.device, fp8=settings.computes_in_fp8)
                predictors.append(
                    Predictor.create(model, lambda each: choose_backend(each, settings, report))
                )
        except torch.OutOfMemoryError:
            raise StartupError(
                f"CHORUS_DENOISER_DEVICE: {settings.device} has too little memory for the models"
            ) from None
        return predictors

    predictors = await device_thread.call(load)
    for predictor in predictors:
        log.info(
            "model loaded",
            model_id=predictor.model.spec.id,
            backend=predictor.backend.name,
            host_adapter=predictor.host.model.adapters[-1].id if predictor.host else None,
        )
    registry = ModelRegistry(predictors, device_thread)
    if len(registry.predictors) < len(predictors):
        ids = [predictor.model.spec.id for predictor in predictors]
        raise SpecError(f"models: two files have the same id: {ids}")
    for model_id, file in zip(registry.predictors, settings.models, strict=True):
        try:
            await registry.warm(model_id)
        except ChorusError as error:
            raise SpecError(f"{file}: {error.message}") from error
    return registry


def _bound(bound: Bound) -> video_pb2.Bound:
    return video_pb2.Bound(min=bound.min, max=bound.max, multiple=bound.multiple)
