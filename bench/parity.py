"""Parity with diffusers, measured on small random checkpoints that diffusers itself saved and loads.

`python -m bench.parity --out bench/results/parity.json`

A relative error is the L2 norm of the difference over that of the reference, diffusers in the same type.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor

from bench.checkpoints import TEXT_DIM, save_wan_pipeline, write_model_file
from bench.results import Figure, write
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.sampler import sample
from services.denoiser.network.wan import patchify, rope_table, unpatchify

# Frames, height, width: one frame, several, landscape, portrait.
VIDEOS: Final = ((1, 32, 32), (5, 32, 48), (9, 48, 32), (17, 16, 64))
# Tokens of the two prompts of a batch, padded with zeros to MAX_TOKENS as Wan does.
LENGTHS: Final = (3, 11)
MAX_TOKENS: Final = 512
DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}


def save_checkpoint(directory: Path) -> Path:
    """A random pipeline with its transformer in shards, and a model file for it; returns the model file."""
    pipeline = save_wan_pipeline(directory / "pipeline", max_shard_size="40KB")
    return write_model_file(directory, pipeline, encoder_id="umt5@unused", max_tokens=MAX_TOKENS)


@torch.no_grad()
def network_errors(model_file: Path, dtype: torch.dtype) -> dict[str, float]:
    """Our network against `WanTransformer3DModel`, by video: batches of two, padded prompts."""
    reference, model = _reference(model_file, dtype), LoadedModel.load(model_file, dtype=dtype)
    errors = {}
    for video in VIDEOS:
        inputs = _inputs(model, video, dtype)
        errors[_label(video)] = relative(_ours(model, *inputs), _theirs(reference, *inputs))
    return errors


@torch.no_grad()
def rounding(model_file: Path, dtype: torch.dtype) -> float:
    """How far diffusers in this type lies from diffusers in float32: the most over the same inputs."""
    reference, exact = _reference(model_file, dtype), _reference(model_file, torch.float32)
    model = LoadedModel.load(model_file)
    return max(
        relative(
            _theirs(reference, *_inputs(model, video, dtype)),
            _theirs(exact, *_inputs(model, video, torch.float32)),
        )
        for video in VIDEOS
    )


def loop_errors(model_file: Path, dtype: torch.dtype) -> dict[str, float]:
    """Our four steps against `WanPipeline`'s, by video: latents, and pixels after the codec.

    The pipeline takes both prompts in one batch; here each is a request of its own.
    """
    model, pipeline = LoadedModel.load(model_file, dtype=dtype), _pipeline(model_file, dtype)
    sigmas = model.spec.schedule.sigmas
    _use(pipeline, sigmas)
    errors = {}
    for video in VIDEOS:
        frames, height, width = video
        noise = torch.stack([model.noise(seed, model.latent_shape(*video)) for seed in (1, 2)])
        prompts = _prompts()
        call = partial(
            pipeline,
            prompt_embeds=torch.stack([_padded(p) for p in prompts]),
            latents=noise,
            num_frames=frames,
            height=height,
            width=width,
            num_inference_steps=len(sigmas) - 1,
            guidance_scale=1.0,
        )
        latents, pixels = call(output_type="latent").frames, call(output_type="pt").frames
        ours = torch.stack([_run(model, x, prompt) for x, prompt in zip(noise, prompts, strict=True)])
        errors[f"{_label(video)} latents"] = relative(ours, latents)
        seen = torch.stack([model.decode(x) for x in ours])  # [2, 3, frames, height, width] in [-1, 1]
        errors[f"{_label(video)} pixels"] = relative(seen, pixels.transpose(1, 2) * 2 - 1)
    return errors


def figures() -> dict[str, Figure]:
    """`parity_fp32_rel` and `parity_bf16_rel`, the most over everything compared, and what stands behind."""
    found: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as directory:
        model_file = save_checkpoint(Path(directory))
        for name, dtype in DTYPES.items():
            network, loop = network_errors(model_file, dtype), loop_errors(model_file, dtype)
            both = (*network.values(), *loop.values())
            found[f"parity_{name}_rel"] = Figure(max(both), "relative", len(both))
            found[f"parity_{name}_network_rel"] = Figure(max(network.values()), "relative", len(network))
            found[f"parity_{name}_loop_rel"] = Figure(max(loop.values()), "relative", len(loop))
        bf16 = rounding(model_file, torch.bfloat16)
        found["diffusers_bf16_to_fp32_rel"] = Figure(bf16, "relative", len(VIDEOS))
    return found


def relative(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want|, in float64. Raises ValueError for another shape."""
    if got.shape != want.shape:
        raise ValueError(f"shapes differ: {list(got.shape)}, {list(want.shape)}")
    return float((got.double() - want.double()).norm() / want.double().norm())


def _reference(model_file: Path, dtype: torch.dtype) -> Any:
    make: Any = WanTransformer3DModel
    return make.from_pretrained(model_file.parent / "pipeline" / "transformer", torch_dtype=dtype).eval()


def _pipeline(model_file: Path, dtype: torch.dtype) -> Any:
    """diffusers' pipeline as documented: the network in `dtype`, the autoencoder in float32."""
    directory = model_file.parent / "pipeline"
    autoencoder: Any = AutoencoderKLWan
    make: Any = WanPipeline
    pipeline = make.from_pretrained(
        directory,
        vae=autoencoder.from_pretrained(directory / "vae", torch_dtype=torch.float32),
        transformer=_reference(model_file, dtype),
        text_encoder=None,
        tokenizer=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _use(pipeline: Any, sigmas: tuple[float, ...]) -> None:
    """Makes a pipeline sample at exactly these noise levels."""
    make: Any = FlowMatchEulerDiscreteScheduler
    scheduler = make(shift=1.0)
    scheduler.set_timesteps = partial(scheduler.set_timesteps, sigmas=list(sigmas[:-1]))
    pipeline.scheduler = scheduler


def _inputs(
    model: LoadedModel, video: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [2, C, T, H, W], padded prompts [2, MAX_TOKENS, TEXT_DIM] and timesteps [2]."""
    latents = torch.stack([model.noise(seed, model.latent_shape(*video)) for seed in (1, 2)])
    text = torch.stack([_padded(prompt) for prompt in _prompts()])
    return latents.to(dtype), text.to(dtype), torch.tensor([1000.0, 625.0])


def _ours(model: LoadedModel, latents: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
    network, patch = model.transformer, model.transformer.config.patch_size
    _, _, t, h, w = latents.shape
    grid = (t // patch[0], h // patch[1], w // patch[2])
    rope = rope_table(network.config, grid)
    tokens = network(patchify(latents, patch), *rope, network.encode_text(text), None, timestep)
    return unpatchify(tokens, grid, patch)


def _theirs(reference: Any, latents: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
    found: Tensor = reference(latents, timestep, text, return_dict=False)[0]
    return found


def _run(model: LoadedModel, noise: Tensor, prompt: Tensor) -> Tensor:
    text = model.prepare_text(prompt)
    predictor, sigmas = Predictor.eager(model), model.spec.schedule.sigmas
    *_, last = sample(lambda x, sigma: predictor.latent_velocity(x, sigma, text), noise, sigmas)
    return last


def _prompts() -> list[Tensor]:
    """Token states without padding, [L, TEXT_DIM] each; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, TEXT_DIM, generator=generator) for length in LENGTHS]


def _padded(states: Tensor) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, 0, MAX_TOKENS - len(states)))


def _label(video: tuple[int, int, int]) -> str:
    return "x".join(map(str, video))


def _rows(found: dict[str, Figure]) -> Iterator[str]:
    return (f"{name:32} {figure.value:.2e}  (n = {figure.n})" for name, figure in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of figures to write")
    args = parser.parse_args()
    found = figures()
    write(args.out, "python -m bench.parity", found)
    print(*_rows(found), sep="\n")


if __name__ == "__main__":
    main()
