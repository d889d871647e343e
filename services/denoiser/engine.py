"""One run on the device: from noise or a donor's latents to an mp4."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from services.common import names, telemetry
from services.common.logs import get_logger
from services.denoiser.jobs import Job
from services.denoiser.models.pipeline import LoadedModel
from services.denoiser.sampler import sample
from services.denoiser.video import encode_mp4, to_frames

log = get_logger("denoiser.engine")

# The most latents a cache entry holds; with more steps than that, the earliest are kept.
MAX_KEPT = 64


@dataclass(frozen=True)
class StepDone:
    """x_index was reached. `seconds`: what the step took."""

    index: int
    sigma: float
    seconds: float


@dataclass(frozen=True)
class Video:
    """An mp4; `height` and `width` as encoded."""

    data: bytes
    frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    latents: x_1 … x_{N−1} by index, float32 [C, T, H, W] on the CPU, as far as they are at hand; empty when
        they were not asked for.
    """

    video: Video
    latents: dict[int, Tensor]
    steps_run: int
    denoise_seconds: float
    decode_seconds: float


def denoise(
    job: Job, start: tuple[int, Tensor] | None, keep: bool, parent: str
) -> Generator[StepDone | Result]:
    """Runs a job and yields after every step, at last the result. In the worker's thread.

    Args:
        start: K1 and the donor's x_{K1}, or None to begin with noise.
        keep: whether the result shall hold the latents.
        parent: traceparent under which the spans belong.
    """
    model = job.model
    kept: dict[int, Tensor] = {}
    denoise_seconds = 0.0
    if start is None:
        first, latents = 0, model.noise(job.seed, job.latent_shape)
    else:
        first, latents = start[0], start[1].to(model.device)
        # With one step left nothing new lies between noise and video: a copy of the donor would crowd it out.
        if first + 1 < job.total_steps:
            kept[first] = start[1]
    attributes: dict[str, str | bool | int | float] = {
        names.GENERATION_ID: job.generation_id,
        names.TOTAL_STEPS: job.total_steps,
        names.FULL_REUSE_STEPS: first,
    }
    with telemetry.span(names.SPAN_DENOISE, attributes, parent=parent):
        text = model.prepare_text(job.token_states)
        steps = sample(lambda x, sigma: model.velocity(x, sigma, text), latents, job.sigmas, first)
        for index in range(first, job.total_steps):
            with telemetry.span(
                names.SPAN_STEP, {names.STEP_INDEX: index, names.STEP_SIGMA: job.sigmas[index]}
            ):
                begin = time.perf_counter()
                latents = next(steps).latents
                _synchronize(model)
                seconds = time.perf_counter() - begin
            denoise_seconds += seconds
            if index + 1 < job.total_steps:
                kept[index + 1] = latents
            try:
                yield StepDone(index + 1, job.sigmas[index + 1], seconds)
            except GeneratorExit:
                log.info("stopped", generation_id=job.generation_id, steps_run=index + 1 - first)
                raise
    with telemetry.span(names.SPAN_DECODE, parent=parent) as span:
        begin = time.perf_counter()
        video = _encode(model, latents)
        decode_seconds = time.perf_counter() - begin
        span.set_attribute(names.BYTES, len(video.data))
    yield Result(
        video=video,
        latents={i: x.cpu() for i, x in sorted(kept.items())[:MAX_KEPT]} if keep else {},
        steps_run=job.total_steps - first,
        denoise_seconds=denoise_seconds,
        decode_seconds=decode_seconds,
    )


def measure_step(model: LoadedModel) -> float:
    """Seconds of one step at the model's default shape; the first, which pays for the start, is not timed."""
    spec = model.spec
    shape = model.latent_shape(spec.video.frames, spec.video.height, spec.video.width)
    text = model.prepare_text(torch.zeros(min(16, spec.text.max_tokens), spec.transformer.text_dim))
    latents = model.noise(0, shape)
    seconds = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        model.velocity(latents, spec.schedule.sigmas[0], text)
        _synchronize(model)
        seconds = time.perf_counter() - begin
    return seconds


def _encode(model: LoadedModel, latents: Tensor) -> Video:
    video = model.spec.video
    frames = to_frames(model.decode(latents), video.upscale)
    count, height, width, _ = frames.shape
    return Video(encode_mp4(frames, video.fps), count, height, width, video.fps)


def _synchronize(model: LoadedModel) -> None:
    # A CUDA call returns before its work is done: without this a step would neither be timed nor cancelled.
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
