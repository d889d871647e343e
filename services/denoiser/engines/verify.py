"""A backend's predictions beside the eager network's."""

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
    """The largest difference of velocities, as it is and by the largest value of the eager network's."""

    absolute: float
    relative: float


def token_counts(model: LoadedModel) -> list[int]:
    """One, a few, a third, all but one, and all tokens of the default shape."""
    video = model.spec.video
    t, h, w = model.token_grid(model.latent_shape(video.frames, video.height, video.width))
    every = t * h * w
    return sorted({1, min(7, every), max(1, every // 3), max(1, every - 1), every})


def compare(model: LoadedModel, backend: Backend, counts: Sequence[int] = ()) -> dict[int, Difference]:
    """How far a backend's velocities are from the eager network's, for token counts.

    Of seeded noise and random texts, plain and by each form of amplification; the worst of them counts.

    Args:
        counts: of tokens; default: `token_counts`.

    Raises BackendError where the backend fails.
    """
    video = model.spec.video
    shape = model.latent_shape(video.frames, video.height, video.width)
    tokens = model.to_tokens(model.noise(0, shape))
    every = len(tokens)
    texts = _texts(model)
    reference, candidate = Predictor.eager(model), Predictor(model, backend)
    errors = {}
    for count in counts or token_counts(model):
        generator = torch.Generator().manual_seed(count)
        index = torch.randperm(every, generator=generator)[:count].sort().values.to(model.device)
        worst = Difference(0.0, 0.0)
        for text in texts:
            expected = reference.velocity(tokens, SIGMA, text, shape, index)
            found = candidate.velocity(tokens, SIGMA, text, shape, index)
            off = float((found - expected).abs().max())
            relative = off / float(expected.abs().max())
            worst = Difference(max(worst.absolute, off), max(worst.relative, relative))
        errors[count] = worst
    return errors


def _texts(model: LoadedModel) -> list[AmplifiedText]:
    """A plain text, and the same amplified by contrast, bias and value gain."""
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
