"""A model ready to denoise: specification, network, adapters and codec together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.denoiser.backends.base import Backend, StepInputs
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.checkpoint.lora import Adapter, Lora
from services.denoiser.checkpoint.names import renamer
from services.denoiser.checkpoint.weights import check_weights, load_weights, verified_digest
from services.denoiser.codec import Codec, SpaceToDepthCodec
from services.denoiser.codec.wan_vae import WanVaeCodec
from services.denoiser.model.spec import ModelSpec, SpaceToDepth, load_spec
from services.denoiser.network.positions import position_channels
from services.denoiser.network.sampler import seeded_noise
from services.denoiser.network.text import AmplifiedText
from services.denoiser.network.wan import (
    AttentionObserver,
    Grid,
    TextKV,
    WanTransformer,
    parameter_dtype,
    patchify,
    rope_table,
    unpatchify,
)

LatentShape = tuple[int, int, int, int]  # channels, latent frames, latent height, latent width


class LoadedModel:
    """One model on one device. Not thread-safe: one worker thread owns it.

        model = LoadedModel.load(Path("models/movingshapes/model.toml"))
        text = model.prepare_text(token_states)                       # float32 [L, text_dim]
        x0 = model.noise(seed, model.latent_shape(frames, height, width))
        for step in sample(lambda x, s: model.velocity(x, s, text), x0, sigmas): ...
        video = model.decode(step.latents)                            # [3, frames, height, width]

    Latents are float32 [C, T, H, W] on `device`, whatever type the network computes in.
    """

    def __init__(
        self,
        spec: ModelSpec,
        transformer: WanTransformer,
        device: str | torch.device = "cpu",
        *,
        codec: Codec | None = None,
        weights_digest: str = "",
        adapters: Sequence[Adapter] = (),
    ) -> None:
        """A network in memory. `load` is the way to one on disk, which has a digest and may have adapters.

        Args:
            codec: must be given where the specification's has weights of its own.
            weights_digest: SHA-256 of the weights; with `adapters`, those merged, part of latents' identity.
        """
        self.spec = spec
        self.device = torch.device(device)
        self.transformer = transformer.to(self.device).eval().requires_grad_(False)
        self.dtype = transformer.patch_embedding.weight.dtype
        self.codec = codec or load_codec(spec, Path(), self.device)
        self.weights_digest = weights_digest
        self.adapters = tuple(adapters)
        # Runs the network's steps; whoever puts another one here closes it.
        self.backend: Backend = EagerBackend(self.transformer)
        self._grid_inputs = lru_cache(maxsize=8)(self._make_grid_inputs)

    @classmethod
    def load(
        cls, path: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> LoadedModel:
        """Load a model file and all it names; every file is checked before anything is allocated from it.

        Args:
            dtype: what the network computes in, instead of what the model file says.

        Raises SpecError, WeightsError.
        """
        spec, folder = load_spec(path), path.parent
        with torch.device("meta"):
            network = WanTransformer(spec.transformer.config())
        expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
        weights = spec.weights.find(folder)
        loras = [
            Lora.load(a.find(folder), expected, id=a.id, scale=a.scale, sha256=a.sha256)
            for a in spec.adapters
        ]
        target = dtype or spec.transformer.torch_dtype

        def convert(name: str, tensor: Tensor) -> Tensor:
            for lora in loras:
                tensor = lora.merged(name, tensor)
            return tensor.to(parameter_dtype(name, target))

        rename = renamer(expected)
        check_weights(weights, expected, rename)  # before the digest, which takes longer and says less
        digest = verified_digest(weights, spec.weights.sha256)
        state = load_weights(weights, expected, rename=rename, convert=convert, device=device)
        network.load_state_dict(state, assign=True)
        return cls(
            spec,
            network,
            device,
            codec=load_codec(spec, folder, device),
            weights_digest=digest,
            adapters=[lora.adapter for lora in loras],
        )

    def latent_shape(self, frames: int, height: int, width: int) -> LatentShape:
        """Shape of a video's latents. Raises ValueError naming the field outside the model's bounds."""
        for name, value in (("frames", frames), ("height", height), ("width", width)):
            if fault := getattr(self.spec.bounds, name).fault(value):
                raise ValueError(f"{name}: {fault}")
        return self.codec.latent_shape(frames, height, width)

    def noise(self, seed: int, shape: LatentShape) -> Tensor:
        """x_0: the same for the same seed and shape on every device."""
        return seeded_noise(seed, shape).to(self.device)

    @torch.inference_mode()
    def prepare_text(self, states: NDArray[np.float32] | Tensor) -> TextKV:
        """Token states [L, text_dim] without padding, 1 <= L -> text keys and values, once per request.

        States beyond the model's `text.max_tokens` are dropped. Raises ValueError for another shape.
        """
        text, limit = self.spec.text, self.spec.text.max_tokens
        dim = self.transformer.config.text_dim
        x = torch.as_tensor(states)
        if x.ndim != 2 or x.shape[0] < 1 or x.shape[1] != dim:
            raise ValueError(f"token_states: must be [L, {dim}] with L at least 1, not {list(x.shape)}")
        x = x[:limit]
        if text.attend_padding:
            x = torch.nn.functional.pad(x, (0, 0, 0, limit - x.shape[0]))
        return self.transformer.encode_text(x[None].to(self.device, self.dtype))

    @torch.inference_mode()
    def velocity(self, latents: Tensor, sigma: float, text: TextKV | AmplifiedText) -> Tensor:
        """Velocity of latents [C, T, H, W] at noise level sigma in (0, 1], same shape, float32."""
        return self.latents_of(
            self.token_velocity(self.tokens_of(latents), sigma, text, latents.shape), latents.shape
        )

    @torch.inference_mode()
    def token_velocity(
        self,
        tokens: Tensor,
        sigma: float,
        text: TextKV | AmplifiedText,
        shape: Sequence[int],
        index: Tensor | None = None,
        on_attention: AttentionObserver | None = None,
    ) -> Tensor:
        """Velocity of some tokens, which see nobody but one another and the text; float32 [n, C*P].

        Args:
            tokens: [N, C*P] of latents of `shape`, all of them.
            index: int64 [n], ascending; None is all. All of them in order give the same bits as None.
            on_attention: told of every block's cross-attention.
        """
        positions, cos, sin = self._grid_inputs(tuple(shape[1:]))
        if index is not None:
            tokens, positions, cos, sin = tokens[index], positions[index], cos[index], sin[index]
        amplified = text if isinstance(text, AmplifiedText) else AmplifiedText(text)
        inputs = torch.cat((tokens, positions), dim=-1)[None].to(self.dtype)
        timestep = torch.tensor([1000.0 * sigma], device=self.device)
        step = StepInputs(inputs, cos, sin, amplified, timestep, on_attention)
        out = self.backend.predict(step)[0].float()
        return (tokens - out) / sigma if self.spec.transformer.prediction == "data" else out

    def tokens_of(self, latents: Tensor) -> Tensor:
        """Latents [C, T, H, W] -> tokens [N, C*P]."""
        return patchify(latents[None], self.transformer.config.patch_size)[0]

    def latents_of(self, tokens: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of `tokens_of`, for latents of `shape`."""
        return unpatchify(tokens[None], self.token_grid(shape), self.transformer.config.patch_size)[0]

    def token_grid(self, shape: Sequence[int]) -> Grid:
        """Tokens along time, rows and columns of latents of `shape`, (C, T, H, W)."""
        (_, t, h, w), (pt, ph, pw) = shape, self.transformer.config.patch_size
        return t // pt, h // ph, w // pw

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [C, T, H, W] -> RGB [3, frames, height, width], about [-1, 1]."""
        return self.codec.decode(latents)

    def _make_grid_inputs(self, size: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Position channels [N, F*P], rotary cosines and sines [N, head_dim] of the tokens of a size."""
        cos, sin = rope_table(self.transformer.config, self.token_grid((0, *size)))
        channels = position_channels(self.spec.transformer.position_order, size)
        positions = self.tokens_of(channels) if len(channels) else torch.empty(len(cos), 0)
        return positions.to(self.device), cos.to(self.device), sin.to(self.device)


def load_codec(spec: ModelSpec, folder: Path, device: str | torch.device) -> Codec:
    """The codec of a model; `folder` is the model file's. Raises SpecError, WeightsError."""
    codec = spec.codec
    if isinstance(codec, SpaceToDepth):
        return SpaceToDepthCodec(codec.temporal, codec.spatial)
    return WanVaeCodec.load(
        codec.find(folder), codec.config_file(folder), sha256=codec.sha256, tile=codec.tile, device=device
    )
