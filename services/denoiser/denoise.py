"""One run on the device, from noise or a donor's latents to an mp4."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from threading import Event

import av
import numpy as np
import torch
from chorus.common.v1 import latents_pb2
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.errors import ChorusError
from chorus_rpc.limits import MAX_BLOBS, SIDE_DATA_SHARE
from numpy.typing import NDArray
from torch import Tensor

from services.denoiser.checkpoint.weights import is_finite
from services.denoiser.codec.mp4 import encode_mp4, to_frames
from services.denoiser.codec.preview import encode_preview
from services.denoiser.codec.thumbnail import Thumbnail, encode_thumbnail
from services.denoiser.device_thread import DeviceFailed
from services.denoiser.latent_cache import DonorData
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.sampler import seeded_noise
from services.denoiser.request import DenoiseJob
from services.denoiser.reuse.attention_maps import AttentionMaps
from services.denoiser.reuse.donor import DonorLatents
from services.denoiser.reuse.resume_point import ResumePoint
from services.denoiser.reuse.side_data import SideData, pool_maps, unpool_maps
from services.denoiser.reuse.stages import PlainNetwork, Stages, Step
from services.runtime.logs import get_logger

log = get_logger("denoiser.run")

_HALF = torch.finfo(torch.float16).max
# Upper bound on the header of a safetensors file with two tensors, in bytes.
SIDE_OVERHEAD_BYTES = 512


@dataclass(frozen=True)
class Video:
    """An encoded mp4.

    Attributes:
        height, width: Size of the encoded frames, in pixels.
        fps: Frames per second.
        thumbnail: Its middle frame; None if that could not be encoded.
    """

    data: bytes
    frames: int
    height: int
    width: int
    fps: float
    thumbnail: Thumbnail | None = None


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes:
        latents: By step boundary, float32 [C, T, H, W] on the CPU: those that this run computed; empty
            unless they were requested.
        approximation: What the latents are stored as; None for those of a full computation.
        side: Attention maps and token states of the prompt; None if no step recorded attention.
        computed_steps: Tokens that went through the network, in units of a full step.
        denoise_seconds: Duration of all steps, and of the preparation of the texts for them.
        fell_back: Whether another backend than the configured one ran a step.
    """

    video: Video
    latents: dict[int, Tensor]
    side: SideData | None
    steps_run: int
    computed_steps: float
    fell_back: bool
    denoise_seconds: float
    decode_seconds: float
    approximation: latents_pb2.Approximation | None = None


def denoise(
    predictor: Predictor,
    job: DenoiseJob,
    donor: DonorData | None,
    keep: bool,
    parent: str,
    paused: Event | None = None,
) -> Generator[Step | Result]:
    """Runs a job on the device thread. Yields every step, with its mask on the CPU, and finally the result.

    With `paused`, each step but the last has its resume point, and the run ends there once the event is set.

    If the model has a host adapter, a run with a donor computes its first step with it. A run with a donor
    stores nothing but its clean latents, as the approximation that the job names: donors are computations of
    the plain model only, which the adapter was trained to continue, and the faults of one edit are not handed
    on to the next.

    Args:
        predictor: Predictor of the job's model.
        donor: Data that the plan takes from its donor. None means that the run starts from noise.
        keep: Whether the result contains latents and side data.
        parent: traceparent of the span under which the run's spans are recorded.
        paused: Requests the end of the run at the next step, or before the first.
    """
    if paused is not None and paused.is_set():
        return
    # Without the donor that it needs, a resumed run starts from noise.
    resume = job.resume if donor is not None or job.donor is None else None
    plain = predictor
    # The host adapter computes only the first step.
    predictor = predictor.select(continues_donor=donor is not None and resume is None)
    model = predictor.model
    host = job.host_adapter if donor else ""
    kept: dict[int, Tensor] = {}
    clean: Tensor | None = None
    denoise_seconds = computed_steps = 0.0
    fell_back = False
    reuse_steps = job.reuse_steps if donor else 0
    last = job.total_steps - 1
    # With one step left there is no intermediate latent of our own to store; storing the donor's again would
    # displace the donor. And what this run did not compute is not stored under its prompt: x_{K1}, even under
    # noise of its own, shows what the donor's prompt describes.
    approximation = job.approximation if 0 < reuse_steps < job.total_steps else None
    keep = keep and reuse_steps < last and not host and approximation is None
    numbers = job.step_numbers if donor else tuple(range(job.total_steps))
    if resume is not None:
        numbers = tuple(range(resume.boundary, job.total_steps))
        if keep and resume.boundary > reuse_steps:
            kept[resume.boundary] = resume.latents
    attributes: dict[str, str | bool | int | float] = {
        semconv.GENERATION_ID: job.generation_id,
        semconv.TOTAL_STEPS: job.total_steps,
        semconv.REUSE_STEPS: reuse_steps,
        semconv.REGION_STEPS: job.region_end - reuse_steps if donor else 0,
    }
    if donor and job.plan.draft_step:
        attributes[semconv.DRAFT_STEP] = job.plan.draft_step
    if host:
        attributes[semconv.HOST_ADAPTER] = host
    for each in (plain, predictor):
        each.backend.drain()  # discards reports left over from an aborted run or a warm-up
    with telemetry.span(semconv.SPAN_DENOISE, attributes, parent=parent):
        attention, begin = AttentionMaps(len(job.token_states)), time.perf_counter()
        if donor and reuse_steps == job.total_steps:
            # A plan that reuses every step has x_N already, and prepares nothing for steps.
            clean = donor.latents[job.total_steps].to(model.device)
            steps: Iterator[Step] = iter(())
        else:
            stages = _prepare_stages(predictor, plain, job, donor, resume)
            steps = stages.steps({last: attention.observe} if keep else None)
            denoise_seconds += time.perf_counter() - begin
        for order, number in enumerate(numbers):
            with telemetry.span(
                semconv.SPAN_STEP, {semconv.STEP_INDEX: number, semconv.STEP_SIGMA: job.sigmas[number]}
            ) as span:
                step = _run_step(steps, model)
                if not is_finite(step.latents):
                    name = f"step {number + 1} of {job.total_steps}"
                    raise _diverged(predictor if order == 0 else plain, name, step=str(number + 1))
                span.set_attribute(semconv.COMPUTED_SHARE, step.computed_share)
                span.set_attribute(semconv.BACKEND, step.backend.backend)
                if step.backend.fallback:
                    span.set_attribute(semconv.FALLBACK, step.backend.fallback)
                    log.warning("step fell back", generation_id=job.generation_id, **asdict(step.backend))
            clean = step.latents
            denoise_seconds += step.seconds
            computed_steps += step.computed_share
            fell_back = fell_back or bool(step.backend.fallback)
            if keep and step.boundary > reuse_steps:
                kept[step.boundary] = step.latents
            if step.estimate is not None:
                preview, fault = _make_preview(model, step.estimate)
                step = replace(step, estimate=None, preview=preview, preview_fault=fault)
            if paused is not None and step.boundary < job.total_steps:
                step = replace(step, resume_point=_make_resume_point(step))
            try:
                yield step
                if paused is not None and step.resume_point is not None and paused.is_set():
                    log.info("run paused", generation_id=job.generation_id, steps_run=order + 1)
                    return
            except GeneratorExit:
                log.info("run stopped", generation_id=job.generation_id, steps_run=order + 1)
                raise
    assert clean is not None, "a run that does not repeat a result computes at least one step"
    with telemetry.span(semconv.SPAN_DECODE, parent=parent) as span:
        begin = time.perf_counter()
        video = _encode(predictor, clean)
        decode_seconds = time.perf_counter() - begin
        span.set_attribute(semconv.BYTES, len(video.data))
    # With more steps than an entry may hold, the earliest are kept.
    latents = {i: x.cpu() for i, x in sorted(kept.items())[:MAX_BLOBS]}
    if approximation is not None:
        latents = {job.total_steps: clean.cpu()}
    yield Result(
        video=video,
        latents=latents,
        side=_side_data(job, attention, latents),
        steps_run=len(numbers),
        computed_steps=computed_steps,
        fell_back=fell_back,
        denoise_seconds=denoise_seconds,
        decode_seconds=decode_seconds,
        approximation=approximation,
    )


def _make_resume_point(step: Step) -> ResumePoint:
    region = None if step.region is None else step.region.cpu()
    return ResumePoint(step.boundary, step.latents.cpu(), region)


def _prepare_stages(
    predictor: Predictor,
    plain: Predictor,
    job: DenoiseJob,
    donor: DonorData | None,
    resume: ResumePoint | None,
) -> Stages:
    """Prepares the texts, the noise and the donor's data for the steps of a run.

    Args:
        predictor: Predictor of the first step.
        plain: Predictor of the steps after it.
    """
    model = predictor.model
    return Stages(
        predictor,
        job.plan,
        job.latent_shape,
        job.sigmas,
        model.prepare_text(job.token_states),
        model.noise(job.seed, job.latent_shape),
        _move_to_device(job, donor, model),
        fresh_noise=model.fresh_noise(job.seed, job.latent_shape),
        # A run of one step has no use for the network of the steps after it, whose text costs milliseconds.
        then=None if plain is predictor or len(job.step_numbers) == 1 else _prepare_plain(plain, job, donor),
        resume=resume,
        estimates=job.step_previews,
    )


def _run_step(steps: Iterator[Step], model: LoadedModel) -> Step:
    """Runs the next step to its end on the device, and measures it."""
    begin = time.perf_counter()
    step = next(steps)
    _synchronize(model)
    return replace(
        step,
        seconds=time.perf_counter() - begin,
        active=None if step.active is None else step.active.cpu(),
    )


def _move_to_device(job: DenoiseJob, donor: DonorData | None, model: LoadedModel) -> DonorLatents | None:
    if donor is None:
        return None
    side, origin = donor.side, job.plan.donor
    return DonorLatents(
        steps={index: latents.to(model.device) for index, latents in donor.latents.items()},
        maps=None if side is None else unpool_maps(side.maps, job.token_grid).to(model.device),
        text=None if side is None else model.prepare_text(side.text.float()),
        fresh_noise=model.fresh_noise(origin.seed, job.latent_shape) if origin.HasField("seed") else None,
    )


def _prepare_plain(predictor: Predictor, job: DenoiseJob, donor: DonorData | None) -> PlainNetwork:
    """Prepares the network of the steps after the host adapter's."""
    prepare = predictor.model.prepare_text
    side = donor.side if donor else None
    return PlainNetwork(
        predictor, prepare(job.token_states), None if side is None else prepare(side.text.float())
    )


def _side_data(job: DenoiseJob, seen: AttentionMaps, latents: Mapping[int, Tensor]) -> SideData | None:
    """Returns the side data for later requests, in at most a tenth of the latents' bytes."""
    attention = seen.maps()
    if attention is None or not latents:
        return None
    text = torch.as_tensor(job.token_states).clamp(-_HALF, _HALF).half()
    limit = sum(x.nbytes for x in latents.values()) // SIDE_DATA_SHARE - text.nbytes - SIDE_OVERHEAD_BYTES
    maps = pool_maps(attention.cpu(), job.token_grid, limit)
    return None if maps is None else SideData(maps, text)


def measure_step(predictor: Predictor) -> float:
    """Returns the seconds of one step at the model's default shape, from noise and random token states.

    A first step, which pays for initialisation, is run and not timed. Raises MODEL_DIVERGED.
    """
    model, spec = predictor.model, predictor.model.spec
    shape = model.latent_shape(spec.video.frames, spec.video.height, spec.video.width)
    states = seeded_noise(0, (min(16, spec.text.max_tokens), spec.transformer.text_dim))
    text = model.prepare_text(states)
    latents = model.noise(0, shape)
    seconds = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        velocity = predictor.latent_velocity(latents, spec.schedule.sigmas[0], text)
        _synchronize(model)
        seconds = time.perf_counter() - begin
        if not is_finite(velocity):
            raise _diverged(predictor, "a step from noise")
    return seconds


def _encode(predictor: Predictor, latents: Tensor) -> Video:
    video = predictor.model.spec.video
    pixels = predictor.model.decode(latents)
    if not is_finite(pixels):
        raise _diverged(predictor, "decoding")
    frames = to_frames(pixels)
    count, height, width, _ = frames.shape
    data = encode_mp4(frames, video.fps, video.upscale)
    thumbnail = _encode_thumbnail(frames, video.upscale)
    return Video(data, count, video.upscale * height, video.upscale * width, video.fps, thumbnail)


def _encode_thumbnail(frames: NDArray[np.uint8], upscale: int) -> Thumbnail | None:
    """Returns the thumbnail; None if it cannot be encoded, which costs no video."""
    try:
        return encode_thumbnail(frames, upscale)
    except (ValueError, av.FFmpegError) as error:
        log.warning("no thumbnail", error=str(error))
        return None


def _make_preview(model: LoadedModel, estimate: Tensor) -> tuple[bytes, str]:
    """Returns the picture of clean latents; or none, and the reason why it could not be made, which costs no
    video.
    """
    try:
        return encode_preview(model.codec, estimate, model.spec.video.upscale).data, ""
    except torch.AcceleratorError as error:
        raise DeviceFailed(str(error)) from error
    except (ValueError, RuntimeError, av.FFmpegError) as error:  # memory of the device, for instance
        log.warning("no preview of a step", error=str(error))
        return b"", str(error) or type(error).__name__


def _diverged(predictor: Predictor, operation: str, **metadata: str) -> ChorusError:
    """Returns the error of an operation whose result holds NaN or infinity."""
    model, backend = predictor.model, predictor.backend.name
    dtype = str(model.dtype).removeprefix("torch.")
    subject = " + ".join([model.spec.id, *(adapter.id for adapter in model.adapters)])
    if dtype == "float16":
        advice = "use bfloat16 or float32: transformer.dtype of the model file"
    elif backend == "tensorrt":
        advice = "use bfloat16 without 8-bit floats: CHORUS_DENOISER_ENGINE_PRECISION, …_ENGINE_FP8"
    else:
        advice = "check that the weights and adapters belong to this network and are intact"
    return ChorusError(
        errors.MODEL_DIVERGED,
        f"{subject}: {operation} gave NaN or infinity in {dtype} on backend {backend}; {advice}",
        metadata={"model_id": model.spec.id, "dtype": dtype, "backend": backend, **metadata},
    )


def _synchronize(model: LoadedModel) -> None:
    # A CUDA call returns before its work is done; without this a step could be neither timed nor cancelled.
    if model.device.type == "cuda":
        try:
            torch.cuda.synchronize(model.device)
        except torch.AcceleratorError as error:
            # No further work can run on the device in this process: it ends, and its supervisor restarts it.
            raise DeviceFailed(str(error)) from error
