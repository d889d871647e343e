"""Model in memory: specification, network, adapters and codec. `predictor.py` runs its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.denoiser.checkpoint.lora import Adapter, Lora, check_overlap
from services.denoiser.checkpoint.names import build_renamer
from services.denoiser.checkpoint.pipeline import check_pipeline
from services.denoiser.checkpoint.weights import (
    WeightsError,
    check_weights,
    is_finite,
    load_weights,
    verify_digest,
)
from services.denoiser.codec import Codec, SpaceToDepthCodec
from services.denoiser.codec.wan_vae import WanVaeCodec
from services.denoiser.model.identity import model_digest
from services.denoiser.model.spec import Adapter as AdapterSpec
from services.denoiser.model.spec import ModelSpec, SpaceToDepth, load_spec
from services.denoiser.network.positions import position_channels
from services.denoiser.network.refiner import TextRefiner
from services.denoiser.network.sampler import BoundaryNoise, seeded_noise
from services.denoiser.network.wan import (
    Grid,
    TextKV,
    WanConfig,
    WanTransformer,
    parameter_dtype,
    patchify,
    rope_table,
    unpatchify,
)

LatentShape = tuple[int, int, int, int]  # channels, latent frames, latent height, latent width


@dataclass(frozen=True)
class GridInputs:
    """Inputs of the network that depend only on the position of a token.

    Attributes:
        positions: Position channels, float32 [N, F*P]; F is 0 for a model without them.
        rope_cos, rope_sin: Cosines and sines of the rotary position table, float32 [N, head_dim] each.
    """

    positions: Tensor
    rope_cos: Tensor
    rope_sin: Tensor


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """One model on one device.

    Latents are float32 [C, T, H, W] on `device`, independent of the type that the network computes in.

    Attributes:
        transformer: Network on `device`, without gradients.
        refiner: Network in float32 that the token states pass first, without gradients; None without one.
        weights_digest: SHA-256 of the weights; with `adapters`, those merged, part of the latents' identity.
        fp8: Whether the backend computes the network's products in 8-bit floats; also part of it.
        host: The same model with its host adapter merged as the last of `adapters`, which runs the steps
            after a donor; None without one. Both share the codec and every parameter that the adapter does
            not change.
    """

    spec: ModelSpec
    transformer: WanTransformer
    refiner: TextRefiner | None
    codec: Codec
    device: torch.device
    weights_digest: str
    adapters: tuple[Adapter, ...]
    fp8: bool = False
    host: LoadedModel | None = None

    @classmethod
    def load(
        cls,
        path: Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        fp8: bool = False,
    ) -> LoadedModel:
        """Loads a model file and all files it names; each is checked before anything is allocated from it.

        Args:
            dtype: Type that the network computes in. Default: the model file's.
            fp8: Whether the backend that will run the model computes in 8-bit floats.

        Raises SpecError, WeightsError.
        """
        spec, folder = load_spec(path), path.parent
        config = spec.transformer.config()
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in WanTransformer(config).state_dict().items()}
        weights = spec.weights.find(folder)

        def load_lora(adapter: AdapterSpec) -> Lora:
            file = adapter.find(folder)
            return Lora.load(file, expected, id=adapter.id, scale=adapter.scale, sha256=adapter.sha256)

        loras = [load_lora(adapter) for adapter in spec.adapters]
        host = None if spec.host is None else load_lora(spec.host)
        check_overlap(loras if host is None else [*loras, host], list(expected))
        target = dtype or spec.transformer.torch_dtype
        hosted: dict[str, Tensor] = {}  # parameters that the host adapter changes

        def convert(name: str, tensor: Tensor) -> Tensor:
            for lora in loras:
                tensor = _merge(lora, name, tensor, weights)
            stored = parameter_dtype(name, target)
            if host is not None and host.changes(name):
                hosted[name] = _merge(host, name, tensor, weights, stored)
            return tensor.to(stored)

        rename = build_renamer(expected)
        check_pipeline(weights)
        check_weights(weights, expected, rename)  # before the digest, which takes longer and is less specific
        digest = verify_digest(weights, spec.weights.sha256)
        state = load_weights(weights, expected, rename=rename, convert=convert, device=device)
        model = cls(
            spec=spec,
            transformer=_build_network(config, state, device),
            refiner=load_refiner(spec, folder, device),
            codec=load_codec(spec, folder, device),
            device=torch.device(device),
            weights_digest=digest,
            adapters=tuple(lora.adapter for lora in loras),
            fp8=fp8,
        )
        if host is None:
            return model
        network = _build_network(config, state | hosted, device)
        return replace(
            model, host=replace(model, transformer=network, adapters=(*model.adapters, host.adapter))
        )

    @property
    def variants(self) -> tuple[LoadedModel, ...]:
        """The model, and its host if it has one: the networks that a backend runs."""
        return (self,) if self.host is None else (self, self.host)

    @cached_property
    def model_digest(self) -> str:
        """Digest of the model file's fields that change latents, part of their identity."""
        return model_digest(self.spec, fp8=self.fp8)

    @property
    def dtype(self) -> torch.dtype:
        """Type that the network computes in."""
        return self.transformer.patch_embedding.weight.dtype

    def latent_shape(self, frames: int, height: int, width: int) -> LatentShape:
        """Returns the shape of a video's latents. Raises ValueError naming a field outside its bounds."""
        for name, value in (("frames", frames), ("height", height), ("width", width)):
            if fault := getattr(self.spec.bounds, name).describe_fault(value):
                raise ValueError(f"{name}: {fault}")
        return self.codec.latent_shape(frames, height, width)

    def noise(self, seed: int, shape: LatentShape, boundary: int = 0) -> Tensor:
        """Draws x_0, or the fresh noise of a later boundary: equal for equal arguments on every device."""
        return seeded_noise(seed, shape, boundary).to(self.device)

    def fresh_noise(self, seed: int, shape: LatentShape) -> BoundaryNoise | None:
        """Returns the noise that the model's sampler adds at each step boundary; None if it adds none."""
        if self.spec.schedule.sampler == "euler":
            return None
        return lru_cache(maxsize=2)(partial(self.noise, seed, shape))  # a step may need it more than once

    @torch.inference_mode()
    def prepare_text(self, states: NDArray[np.float32] | Tensor) -> TextKV:
        """Converts token states [L, text_dim], unpadded, L at least 1, to keys and values, once per request.

        States past the model's `text.max_tokens` are dropped. Raises ValueError for another shape.
        """
        return self.transformer.encode_text(self.condition(states).to(self.dtype))

    @torch.inference_mode()
    def condition(self, states: NDArray[np.float32] | Tensor) -> Tensor:
        """Returns the states [1, L, text_dim] that the transformer reads: refined and padded as the model
        says. Arguments and errors are those of `prepare_text`."""
        text, limit = self.spec.text, self.spec.text.max_tokens
        dim = self.transformer.config.text_dim
        x = torch.as_tensor(states)
        if x.ndim != 2 or x.shape[0] < 1 or x.shape[1] != dim:
            raise ValueError(f"token_states: must be [L, {dim}] with L at least 1, not {list(x.shape)}")
        x = x[None, :limit].to(self.device)
        if self.refiner is not None:
            x = self.refiner(x.float())
        if text.attend_padding:
            x = torch.nn.functional.pad(x, (0, 0, 0, limit - x.shape[1]))
        return x

    def to_tokens(self, latents: Tensor) -> Tensor:
        """Converts latents [C, T, H, W] to tokens [N, C*P]."""
        return patchify(latents[None], self.transformer.config.patch_size)[0]

    def to_latents(self, tokens: Tensor, shape: Sequence[int]) -> Tensor:
        """Inverts `to_tokens`, for latents of `shape`."""
        return unpatchify(tokens[None], self.token_grid(shape), self.transformer.config.patch_size)[0]

    def token_grid(self, shape: Sequence[int]) -> Grid:
        """Returns the tokens along time, rows and columns of latents of `shape`, (C, T, H, W)."""
        (_, t, h, w), (pt, ph, pw) = shape, self.transformer.config.patch_size
        return t // pt, h // ph, w // pw

    def grid_inputs(self, shape: Sequence[int]) -> GridInputs:
        """Returns the inputs of every token of latents of `shape`, (C, T, H, W)."""
        _, t, h, w = shape
        cos, sin = rope_table(self.transformer.config, self.token_grid(shape))
        channels = position_channels(self.spec.transformer.position_order, (t, h, w))
        positions = self.to_tokens(channels) if len(channels) else torch.empty(len(cos), 0)
        return GridInputs(positions.to(self.device), cos.to(self.device), sin.to(self.device))

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents [C, T, H, W] to RGB [3, frames, height, width], about [-1, 1]."""
        return self.codec.decode(latents)


def _build_network(
    config: WanConfig, state: Mapping[str, Tensor], device: str | torch.device
) -> WanTransformer:
    """Returns a network whose parameters are the tensors of `state`, not copies of them."""
    with torch.device("meta"):
        network = WanTransformer(config)
    network.load_state_dict(state, assign=True)
    return network.to(device).eval().requires_grad_(False)


def _merge(lora: Lora, name: str, tensor: Tensor, weights: Path, dtype: torch.dtype | None = None) -> Tensor:
    """Merges an adapter into a parameter. Raises WeightsError if that makes it infinite or not a number.

    Args:
        dtype: Type of the result. Default: float32 if the adapter changes the parameter, else its own.
    """
    merged = lora.merge(name, tensor)
    if dtype is not None:
        tensor, merged = tensor.to(dtype), merged.to(dtype)
    if merged is not tensor and is_finite(tensor) and not is_finite(merged):
        fault = f"adapter {lora.adapter.id}: merged, tensor {name} holds NaN or infinity"
        raise WeightsError(weights, fault if merged.dtype == torch.float32 else f"{fault} in {merged.dtype}")
    return merged


def load_refiner(spec: ModelSpec, folder: Path, device: str | torch.device) -> TextRefiner | None:
    """Loads the text refiner of a model, if it has one. Raises SpecError, WeightsError."""
    described = spec.text.refiner
    if described is None:
        return None
    with torch.device("meta"):
        refiner = TextRefiner(spec.transformer.text_dim, described.dim, described.heads, described.layers)
    expected = {name: tensor.shape for name, tensor in refiner.state_dict().items()}
    weights = described.find(folder)
    check_weights(weights, expected)  # before the digest, which is less specific
    verify_digest(weights, described.sha256)
    refiner.load_state_dict(load_weights(weights, expected, device=device), assign=True)
    return refiner.eval().requires_grad_(False)


def load_codec(spec: ModelSpec, folder: Path, device: str | torch.device) -> Codec:
    """Loads the codec of a model; `folder` holds the model file. Raises SpecError, WeightsError."""
    codec = spec.codec
    if isinstance(codec, SpaceToDepth):
        return SpaceToDepthCodec(codec.temporal, codec.spatial, codec.scale)
    return WanVaeCodec.load(
        codec.find(folder), codec.config_file(folder), sha256=codec.sha256, tile=codec.tile, device=device
    )
