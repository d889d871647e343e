"""A model ready to denoise: specification, network and codec together."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.denoiser.codec import Codec
from services.denoiser.models.positions import position_channels
from services.denoiser.models.spec import ModelSpec, load_spec
from services.denoiser.models.wan import TextKV, WanTransformer, patchify, rope_table, unpatchify
from services.denoiser.models.weights import load_weights
from services.denoiser.sampler import seeded_noise

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
        self, spec: ModelSpec, transformer: WanTransformer, device: str | torch.device = "cpu"
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.transformer = transformer.to(self.device).eval().requires_grad_(False)
        self.dtype = next(transformer.parameters()).dtype
        self.codec: Codec = spec.make_codec()
        self._grid_inputs = lru_cache(maxsize=8)(self._make_grid_inputs)

    @classmethod
    def load(
        cls, path: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> LoadedModel:
        """Load a model file and its weights; allocates after all checks. Raises SpecError, WeightsError."""
        spec = load_spec(path)
        with torch.device("meta"):
            network = WanTransformer(spec.transformer.config())
        expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
        state = load_weights(
            path.parent / spec.weights.file, expected, sha256=spec.weights.sha256, dtype=dtype, device=device
        )
        network.load_state_dict(state, assign=True)
        return cls(spec, network, device)

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
    def velocity(self, latents: Tensor, sigma: float, text: TextKV) -> Tensor:
        """Velocity of latents [C, T, H, W] at noise level sigma in (0, 1], same shape, float32."""
        patch = self.transformer.config.patch_size
        _, t, h, w = latents.shape
        positions, cos, sin = self._grid_inputs((t, h, w))
        tokens = patchify(torch.cat((latents, positions))[None], patch).to(self.dtype)
        timestep = torch.tensor([1000.0 * sigma], device=self.device)
        out = self.transformer(tokens, cos, sin, text, None, timestep)
        result = unpatchify(out.float(), (t // patch[0], h // patch[1], w // patch[2]), patch)[0]
        return (latents - result) / sigma if self.spec.transformer.prediction == "data" else result

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [C, T, H, W] -> RGB [3, frames, height, width], about [-1, 1]."""
        return self.codec.decode(latents)

    def _make_grid_inputs(self, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Position channels [3F, T, H, W] and rotary cosines and sines [N, head_dim] of a latent size."""
        t, h, w = shape
        patch = self.transformer.config.patch_size
        positions = position_channels(self.spec.transformer.position_order, shape)
        cos, sin = rope_table(self.transformer.config, (t // patch[0], h // patch[1], w // patch[2]))
        return positions.to(self.device), cos.to(self.device), sin.to(self.device)
