"""Generates videos as the denoiser does, in this process: plain runs, and runs from a donor's latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chorus.common.v1 import plan_pb2
from torch import Tensor

from services.contract.schedule import shifted_schedule
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.sampler import add_noise, sample
from services.denoiser.reuse.amplification import amplify_text

HERE: Final = Path(__file__).parent
MODELS: Final = {  # model files by the name of the network
    "student": HERE / "model.toml",
    "teacher": HERE / "teacher.toml",
    "student-2": HERE / "student-2.toml",
    "student-1": HERE / "student-1.toml",
}

Velocity = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Run:
    """A plain run.

    Attributes:
        states: Token states of its prompt, [L, D].
        latents: Latents before the first step and after each, [C, T, H, W].
    """

    states: Tensor
    latents: tuple[Tensor, ...]


@dataclass(frozen=True)
class Draft:
    """Start of a run with a donor: clean latents, predicted by step `step`, with the noise of a seed."""

    step: int
    seed: int


class Generator:
    """One model in its default video size."""

    def __init__(self, model: LoadedModel, predictor: Predictor | None = None) -> None:
        """Uses the reference backend unless a predictor of the model is given."""
        self.model, self.predictor = model, predictor or Predictor.eager(model)
        video = model.spec.video
        self.shape = model.latent_shape(video.frames, video.height, video.width)
        self.sigmas = tuple(model.spec.schedule.sigmas)

    def run(self, states: Tensor, seed: int, steps: int | None = None, host: bool = False) -> Run:
        """Runs without a donor, in `steps` steps of the shifted schedule; by default in the model's own.

        `host` switches the host adapter on, which plain runs do not use when they are served.
        """
        sigmas = self.sigmas if steps is None else shifted_schedule(steps, self.model.spec.schedule.shift)
        predictor = self.predictor.select(continues_donor=host)
        text, start = predictor.model.prepare_text(states), self.model.noise(seed, self.shape)
        latents = sample(lambda x, s: predictor.latent_velocity(x, s, text), start, sigmas)
        return Run(states, (start, *latents))

    def reuse(
        self,
        donor: Run,
        states: Tensor,
        level: int,
        host: bool = True,
        contrast: float = 0.0,
        draft: Draft | None = None,
    ) -> Tensor:
        """Continues from a donor's latents at a level of the schedule. Returns clean latents.

        Args:
            donor: Run of this model with its own schedule.
            states: Token states of the new prompt.
            level: Number of reused steps, K1.
            host: Whether the host adapter, if the model has one, computes the first step.
            contrast: Strength of the amplification towards the new prompt.
            draft: Draft to start from, instead of the donor's latents.
        """
        amplification = plan_pb2.Amplification(form=plan_pb2.AMPLIFICATION_FORM_CONTRAST, strength=contrast)

        def create_velocity(predictor: Predictor) -> Velocity:
            text, other = (predictor.model.prepare_text(s) for s in (states, donor.states))
            amplified = amplify_text(text, amplification, donor=other)
            return lambda x, s: predictor.latent_velocity(x, s, amplified)

        first = create_velocity(self.predictor.select(continues_donor=host))
        then = create_velocity(self.predictor)

        if draft is not None:
            sigma, latents = self.sigmas[draft.step], donor.latents[draft.step]
            clean = latents - sigma * first(latents, sigma)
            start = add_noise(clean, self.model.noise(draft.seed, self.shape), self.sigmas[level])
            *_, clean = sample(then, start, self.sigmas, level)
            return clean

        def velocity(x: Tensor, sigma: float) -> Tensor:
            return (first if sigma == self.sigmas[level] else then)(x, sigma)

        *_, clean = sample(velocity, donor.latents[level], self.sigmas, level)
        return clean

    def video(self, latents: Tensor) -> Tensor:
        """Decodes clean latents to a video [3, frames, height, width]."""
        return self.model.decode(latents)
