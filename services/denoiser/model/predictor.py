"""Predictor: a model together with the backend that runs its network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from services.denoiser.backends.base import Backend, StepInputs
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.model.loaded import GridInputs, LoadedModel
from services.denoiser.network.text import AmplifiedText
from services.denoiser.network.wan import AttentionObserver, TextKV


@dataclass(frozen=True, eq=False)
class Predictor:
    """Predicts velocities. It is not thread-safe: the device thread owns it.

        model = LoadedModel.load(Path("models/shapes/model.toml"))
        predictor = Predictor.eager(model)
        text = model.prepare_text(token_states)                       # float32 [L, text_dim]
        shape = model.latent_shape(frames, height, width)
        noise, fresh_noise = model.noise(seed, shape), model.fresh_noise(seed, shape)
        velocity = lambda x, sigma: predictor.latent_velocity(x, sigma, text)
        *_, clean = sample(velocity, noise, sigmas, fresh_noise=fresh_noise)
        video = model.decode(clean)                                   # [3, frames, height, width]

    Attributes:
        backend: Runs the network of `model`; closed by `close`.
        host: Predictor of `model.host`; closed by `close`.
    """

    model: LoadedModel
    backend: Backend
    host: Predictor | None = None

    @classmethod
    def create(cls, model: LoadedModel, create_backend: Callable[[LoadedModel], Backend]) -> Predictor:
        """Returns a predictor of a model and of its host, each on a backend of its own."""
        backend = create_backend(model)
        host = None if model.host is None else cls.create(model.host, create_backend)
        return cls(model, backend, host)

    @classmethod
    def eager(cls, model: LoadedModel) -> Predictor:
        """Returns a predictor on the reference backend."""
        return cls.create(model, lambda each: EagerBackend(each.transformer))

    def select(self, *, continues_donor: bool) -> Predictor:
        """Returns the predictor of all steps of a run: that of the host if the run starts from a donor.

        The text of the run must be prepared by the returned predictor's model: the host adapter may change
        keys and values of the text, too.
        """
        return self.host if continues_donor and self.host is not None else self

    @torch.inference_mode()
    def velocity(
        self,
        tokens: Tensor,
        sigma: float,
        text: TextKV | AmplifiedText,
        shape: Sequence[int],
        index: Tensor | None = None,
        on_attention: AttentionObserver | None = None,
    ) -> Tensor:
        """Predicts velocities of tokens that attend only to one another and to the text; float32 [n, C*P].

        Args:
            tokens: All tokens of latents of `shape`, [N, C*P].
            sigma: Noise level of the latents, in (0, 1].
            index: Tokens to compute, int64 [n], ascending. None means all; the indices of all tokens give
                the same bits.
            on_attention: Observer of the cross-attention of the watched blocks.

        Raises BackendError.
        """
        grid = self._grid_inputs(tuple(shape))
        positions, cos, sin = grid.positions, grid.rope_cos, grid.rope_sin
        if index is not None:
            tokens, positions, cos, sin = tokens[index], positions[index], cos[index], sin[index]
        amplified = text if isinstance(text, AmplifiedText) else AmplifiedText(text)
        inputs = torch.cat((tokens, positions), dim=-1)[None].to(self.model.dtype)
        timestep = torch.tensor([1000.0 * sigma], device=self.model.device)
        step = StepInputs(inputs, cos, sin, amplified, timestep, on_attention)
        out = self.backend.predict(step)[0].float()
        return (tokens - out) / sigma if self.model.spec.transformer.prediction == "data" else out

    @torch.inference_mode()
    def latent_velocity(self, latents: Tensor, sigma: float, text: TextKV | AmplifiedText) -> Tensor:
        """Predicts the velocity of latents [C, T, H, W] at noise level `sigma`, same shape, float32."""
        tokens, shape = self.model.to_tokens(latents), latents.shape
        return self.model.to_latents(self.velocity(tokens, sigma, text, shape), shape)

    def close(self) -> None:
        """Releases the backend's resources. The predictor is unusable afterwards. Idempotent."""
        self.backend.close()
        if self.host is not None:
            self.host.close()

    @cached_property
    def _grid_inputs(self) -> Callable[[tuple[int, ...]], GridInputs]:
        return lru_cache(maxsize=8)(self.model.grid_inputs)
