"""Measures parity with diffusers on small random checkpoints saved and loaded by diffusers.

`python -m bench.parity --out bench/results/parity.json`

A relative error is the L2 norm of the difference divided by that of the reference. The reference is diffusers
in the same type.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor

from bench.checkpoints import TEXT_DIM, save_wan_pipeline, write_model_file
from bench.results import Figure, write
from services.denoiser.engines.build import ONNX, ensure_engine, load_engine
from services.denoiser.engines.store import EngineStore
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.sampler import sample
from services.denoiser.network.wan import patchify, rope_table, unpatchify

# Frames, height and width: one frame, several frames, landscape, portrait.
VIDEOS: Final = ((1, 32, 32), (5, 32, 48), (9, 48, 32), (17, 16, 64))
# Token counts of the two prompts of a batch, padded with zeros to MAX_TOKENS as in Wan.
LENGTHS: Final = (3, 11)
MAX_TOKENS: Final = 512
DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}


def save_checkpoint(directory: Path) -> Path:
    """Saves a random pipeline with a sharded transformer and a model file for it. Returns the model file."""
    pipeline = save_wan_pipeline(directory / "pipeline", max_shard_size="40KB")
    return write_model_file(directory, pipeline, encoder_id="umt5@unused", max_tokens=MAX_TOKENS)


@torch.no_grad()
def measure_network_errors(model_file: Path, dtype: torch.dtype) -> dict[str, float]:
    """Measures the network's error against `WanTransformer3DModel` by video, for batches of two prompts."""
    reference, model = _load_reference(model_file, dtype), LoadedModel.load(model_file, dtype=dtype)
    errors = {}
    for video in VIDEOS:
        inputs = _build_inputs(model, video, dtype)
        predicted, expected = _run_network(model, *inputs), _run_reference(reference, *inputs)
        errors[_label(video)] = relative_error(predicted, expected)
    return errors


@torch.no_grad()
def measure_rounding(model_file: Path, dtype: torch.dtype) -> float:
    """Measures the largest error of diffusers in this type against diffusers in float32."""
    reference, exact = _load_reference(model_file, dtype), _load_reference(model_file, torch.float32)
    model = LoadedModel.load(model_file)
    return max(
        relative_error(
            _run_reference(reference, *_build_inputs(model, video, dtype)),
            _run_reference(exact, *_build_inputs(model, video, torch.float32)),
        )
        for video in VIDEOS
    )


def measure_loop_errors(
    model_file: Path,
    dtype: torch.dtype,
    make_predictor: Callable[[LoadedModel], Predictor] = Predictor.eager,
) -> dict[str, float]:
    """Measures the error of four steps against `WanPipeline` by video: latents, and pixels after the codec.

    The pipeline runs both prompts in one batch; the denoiser runs each as a separate request.
    """
    model, pipeline = LoadedModel.load(model_file, dtype=dtype), _load_pipeline(model_file, dtype)
    predictor, sigmas = make_predictor(model), model.spec.schedule.sigmas
    _set_sigmas(pipeline, sigmas)
    errors = {}
    for video in VIDEOS:
        frames, height, width = video
        noise = torch.stack([model.noise(seed, model.latent_shape(*video)) for seed in (1, 2)])
        prompts = _random_prompts()
        call = partial(
            pipeline,
            prompt_embeds=torch.stack([_pad(p) for p in prompts]),
            latents=noise,
            num_frames=frames,
            height=height,
            width=width,
            num_inference_steps=len(sigmas) - 1,
            guidance_scale=1.0,
        )
        latents, pixels = call(output_type="latent").frames, call(output_type="pt").frames
        own = torch.stack([_run_loop(predictor, x, prompt) for x, prompt in zip(noise, prompts, strict=True)])
        errors[f"{_label(video)} latents"] = relative_error(own, latents)
        decoded = torch.stack([model.decode(x) for x in own])  # [2, 3, frames, height, width] in [-1, 1]
        errors[f"{_label(video)} pixels"] = relative_error(decoded, pixels.transpose(1, 2) * 2 - 1)
    return errors


def measure_figures() -> dict[str, Figure]:
    """Measures `parity_fp32_rel` and `parity_bf16_rel`, the largest errors, and their components."""
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as directory:
        model_file = save_checkpoint(Path(directory))
        for name, dtype in DTYPES.items():
            network = measure_network_errors(model_file, dtype)
            loop = measure_loop_errors(model_file, dtype)
            both = (*network.values(), *loop.values())
            figures[f"parity_{name}_rel"] = Figure(max(both), "relative", len(both))
            figures[f"parity_{name}_network_rel"] = Figure(max(network.values()), "relative", len(network))
            figures[f"parity_{name}_loop_rel"] = Figure(max(loop.values()), "relative", len(loop))
        loop = measure_loop_errors(model_file, torch.float32, partial(run_on_onnxruntime, Path(directory)))
        figures["parity_onnxruntime_loop_rel"] = Figure(max(loop.values()), "relative", len(loop))
        bf16 = measure_rounding(model_file, torch.bfloat16)
        figures["diffusers_bf16_to_fp32_rel"] = Figure(bf16, "relative", len(VIDEOS))
    return figures


def run_on_onnxruntime(directory: Path, model: LoadedModel) -> Predictor:
    """Returns a predictor on the backend `onnxruntime`; the graph is exported to `directory`."""
    engine = ensure_engine(model, ONNX, EngineStore(directory / "engines"), lambda _: None)
    return Predictor(model, load_engine(model, engine, ONNX))


def relative_error(got: Tensor, want: Tensor) -> float:
    """Computes |got - want| / |want| in float64. Raises ValueError if the shapes differ."""
    if got.shape != want.shape:
        raise ValueError(f"shapes differ: {list(got.shape)}, {list(want.shape)}")
    return float((got.double() - want.double()).norm() / want.double().norm())


def _load_reference(model_file: Path, dtype: torch.dtype) -> Any:
    model: Any = WanTransformer3DModel
    return model.from_pretrained(model_file.parent / "pipeline" / "transformer", torch_dtype=dtype).eval()


def _load_pipeline(model_file: Path, dtype: torch.dtype) -> Any:
    """Loads diffusers' pipeline as its documentation recommends: only the autoencoder in float32."""
    directory = model_file.parent / "pipeline"
    autoencoder: Any = AutoencoderKLWan
    construct: Any = WanPipeline
    pipeline = construct.from_pretrained(
        directory,
        vae=autoencoder.from_pretrained(directory / "vae", torch_dtype=torch.float32),
        transformer=_load_reference(model_file, dtype),
        text_encoder=None,
        tokenizer=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _set_sigmas(pipeline: Any, sigmas: tuple[float, ...]) -> None:
    """Configures a pipeline to sample at exactly these noise levels."""
    construct: Any = FlowMatchEulerDiscreteScheduler
    scheduler = construct(shift=1.0)
    scheduler.set_timesteps = partial(scheduler.set_timesteps, sigmas=list(sigmas[:-1]))
    pipeline.scheduler = scheduler


def _build_inputs(
    model: LoadedModel, video: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns latents [2, C, T, H, W], padded prompts [2, MAX_TOKENS, TEXT_DIM] and timesteps [2]."""
    latents = torch.stack([model.noise(seed, model.latent_shape(*video)) for seed in (1, 2)])
    text = torch.stack([_pad(prompt) for prompt in _random_prompts()])
    return latents.to(dtype), text.to(dtype), torch.tensor([1000.0, 625.0])


def _run_network(model: LoadedModel, latents: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
    network, patch = model.transformer, model.transformer.config.patch_size
    _, _, t, h, w = latents.shape
    grid = (t // patch[0], h // patch[1], w // patch[2])
    rope = rope_table(network.config, grid)
    tokens = network(patchify(latents, patch), *rope, network.encode_text(text), None, timestep)
    return unpatchify(tokens, grid, patch)


def _run_reference(reference: Any, latents: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
    out: Tensor = reference(latents, timestep, text, return_dict=False)[0]
    return out


def _run_loop(predictor: Predictor, noise: Tensor, prompt: Tensor) -> Tensor:
    text = predictor.model.prepare_text(prompt)
    sigmas = predictor.model.spec.schedule.sigmas
    *_, last = sample(lambda x, sigma: predictor.latent_velocity(x, sigma, text), noise, sigmas)
    return last


def _random_prompts() -> list[Tensor]:
    """Returns token states without padding, [L, TEXT_DIM] each; equal in every call."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, TEXT_DIM, generator=generator) for length in LENGTHS]


def _pad(states: Tensor) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, 0, MAX_TOKENS - len(states)))


def _label(video: tuple[int, int, int]) -> str:
    return "x".join(map(str, video))


def _format_rows(figures: dict[str, Figure]) -> Iterator[str]:
    return (f"{name:32} {figure.value:.2e}  (n = {figure.n})" for name, figure in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    figures = measure_figures()
    write(args.out, "python -m bench.parity", figures)
    print(*_format_rows(figures), sep="\n")


if __name__ == "__main__":
    main()
