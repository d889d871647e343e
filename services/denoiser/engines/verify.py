"""Compares the predictions of a backend with those of the eager network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from chorus.common.v1 import plan_pb2

from services.denoiser.backends.base import Backend
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.text import AmplifiedText
from services.denoiser.reuse.amplification import amplify_text

SIGMA = 0.9


@dataclass(frozen=True)
class Difference:
    """Largest difference of velocities.

    Attributes:
        absolute: Largest absolute difference.
        relative: Largest difference divided by the largest absolute velocity of the eager network.
    """

    absolute: float
    relative: float


def select_token_counts(model: LoadedModel) -> list[int]:
    """Returns one, a few, a third, all but one, and all tokens of the default shape."""
    video = model.spec.video
    t, h, w = model.token_grid(model.latent_shape(video.frames, video.height, video.width))
    every = t * h * w
    return sorted({1, min(7, every), max(1, every // 3), max(1, every - 1), every})


def compare(model: LoadedModel, backend: Backend, counts: Sequence[int] = ()) -> dict[int, Difference]:
    """Measures the difference of a backend's velocities from the eager network's, by token count.

    The inputs are seeded noise and random texts, plain and with each form of amplification. The result is the
    largest difference over the texts.

    Args:
        counts: Token counts to compare. Default: `select_token_counts`.

    Raises:
        BackendError: The backend failed.
    """
    video = model.spec.video
    shape = model.latent_shape(video.frames, video.height, video.width)
    tokens = model.to_tokens(model.noise(0, shape))
    every = len(tokens)
    texts = _build_texts(model)
    reference, candidate = Predictor.eager(model), Predictor(model, backend)
    errors = {}
    for count in counts or select_token_counts(model):
        generator = torch.Generator().manual_seed(count)
        index = torch.randperm(every, generator=generator)[:count].sort().values.to(model.device)
        worst = Difference(0.0, 0.0)
        for text in texts:
            expected = reference.velocity(tokens, SIGMA, text, shape, index)
            actual = candidate.velocity(tokens, SIGMA, text, shape, index)
            absolute = float((actual - expected).abs().max())
            relative = absolute / float(expected.abs().max())
            worst = Difference(max(worst.absolute, absolute), max(worst.relative, relative))
        errors[count] = worst
    return errors


def _build_texts(model: LoadedModel) -> list[AmplifiedText]:
    """Returns a plain text, and the same text amplified by contrast, bias and value gain."""
    spec = model.spec
    generator = torch.Generator().manual_seed(0)

    def states(length: int) -> torch.Tensor:
        return torch.randn(min(length, spec.text.max_tokens), spec.transformer.text_dim, generator=generator)

    own, donor = model.prepare_text(states(9)), model.prepare_text(states(12))
    forms = [
        plan_pb2.AMPLIFICATION_FORM_CONTRAST,
        plan_pb2.AMPLIFICATION_FORM_BIAS,
        plan_pb2.AMPLIFICATION_FORM_VALUE_GAIN,
    ]
    return [
        AmplifiedText(own),
        *(
            amplify_text(own, plan_pb2.Amplification(form=form, strength=0.5), gained=[(1, 1.0)], donor=donor)
            for form in forms
        ),
    ]
