"""Donor's side of a run: cached latents, and the predictions that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from services.denoiser.model.loaded import LoadedModel
from services.denoiser.network.sampler import BoundaryNoise, remove_noise
from services.denoiser.network.wan import TextKV
from services.denoiser.reuse.region_masks import compare_predictions


@dataclass(frozen=True)
class DonorLatents:
    """Cached data of a donor, on the model's device.

    Attributes:
        steps: Latents by step boundary, float32 [C, T, H, W]: x_{K1} … x_{K2}, or only x_N for a plan
            that renoises or reuses every step.
        maps: Places where each token of the donor's prompt acted, [L, N] in 0 to 1; used by regions from
            attention.
        text: Encoded prompt of the donor; used by contrast.
        fresh_noise: Noise that the donor's run added at each step boundary; None if its sampler adds none.
            Used by regions.
    """

    steps: Mapping[int, Tensor]
    maps: Tensor | None = None
    text: TextKV | None = None
    fresh_noise: BoundaryNoise | None = None


class DonorTrajectory:
    """Provides the donor's latents as tokens, and the clean data that the donor predicted in each step."""

    def __init__(self, model: LoadedModel, donor: DonorLatents, sigmas: Sequence[float]) -> None:
        self._model, self._latents, self._sigmas = model, donor, sigmas
        # Both are computed once per step.
        self._tokens: dict[int, Tensor] = {}
        self._predictions: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def maps(self) -> Tensor:
        """Attention maps of the donor's prompt, [L, N]. The plan must need side data."""
        assert self._latents.maps is not None
        return self._latents.maps

    def tokens(self, boundary: int) -> Tensor:
        """Returns x_boundary as tokens [N, C*P]."""
        if boundary not in self._tokens:
            self._tokens[boundary] = self._model.to_tokens(self._latents.steps[boundary])
        return self._tokens[boundary]

    def noise(self, boundary: int) -> Tensor:
        """Returns the noise that the donor's sampler added at a step boundary, as tokens [N, C*P]."""
        assert self._latents.fresh_noise is not None
        return self._model.to_tokens(self._latents.fresh_noise(boundary))

    def differences(
        self, step: int, tokens: Tensor, velocity: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """Returns the difference of the target's prediction of clean data from the donor's, per token [n].

        Args:
            tokens: The target's x_step as tokens, [N, C*P].
            velocity: Velocities [n, C*P] of the tokens at `positions` [n]; None means all tokens.
        """
        donor, variance = self._prediction(step)
        if positions is not None:
            tokens, donor = tokens[positions], donor[positions]
        return compare_predictions(tokens - self._sigmas[step] * velocity, donor, variance)

    def _prediction(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns the clean data that the donor predicted in a step, [N, C*P], and its variance.

        They follow from the latents before and after the step.
        """
        if step not in self._predictions:
            there, sigma, sigma_next = self.tokens(step + 1), self._sigmas[step], self._sigmas[step + 1]
            if self._latents.fresh_noise is not None:
                prediction = remove_noise(there, self.noise(step + 1), sigma_next)
            else:
                here = self.tokens(step)
                prediction = here - sigma * (there - here) / (sigma_next - sigma)
            self._predictions[step] = prediction, prediction.var()
        return self._predictions[step]
