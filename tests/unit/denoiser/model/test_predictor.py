"""Tests of the predictor: it runs the model's network on the backend that it was given."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.denoiser.backends.base import Backend, StepInputs
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from tests.tiny_model import TEXT_DIM, save_tiny_model


class DoublingBackend(Backend):
    """Predicts twice the network's output."""

    def __init__(self, model: LoadedModel) -> None:
        self._eager = EagerBackend(model.transformer)
        self.closed = False

    @property
    def name(self) -> str:
        return "doubling"

    def unsupported_reason(self, inputs: StepInputs) -> str | None:
        return None

    def predict(self, inputs: StepInputs) -> Tensor:
        return 2 * self._eager.predict(inputs)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return LoadedModel.load(save_tiny_model(tmp_path_factory.mktemp("model")))


def test_velocities_come_from_the_given_backend(model: LoadedModel) -> None:
    assert model.spec.transformer.prediction == "velocity"
    backend = DoublingBackend(model)
    text = model.prepare_text(torch.ones(3, TEXT_DIM))
    latents = model.noise(0, model.latent_shape(2, 8, 8))
    once = Predictor.eager(model).latent_velocity(latents, 0.9, text)
    assert torch.equal(Predictor(model, backend).latent_velocity(latents, 0.9, text), 2 * once)
    assert torch.equal(Predictor.eager(model).latent_velocity(latents, 0.9, text), once)


def test_velocities_of_all_tokens_equal_those_of_latents(model: LoadedModel) -> None:
    predictor, text = Predictor.eager(model), model.prepare_text(torch.ones(3, TEXT_DIM))
    latents = model.noise(0, model.latent_shape(2, 8, 8))
    tokens = model.to_tokens(latents)
    velocity = predictor.velocity(tokens, 0.9, text, latents.shape)
    indexed = predictor.velocity(tokens, 0.9, text, latents.shape, torch.arange(len(tokens)))
    assert torch.equal(velocity, indexed)
    assert torch.equal(
        model.to_latents(velocity, latents.shape), predictor.latent_velocity(latents, 0.9, text)
    )


def test_closing_closes_the_backend(model: LoadedModel) -> None:
    backend = DoublingBackend(model)
    Predictor(model, backend).close()
    assert backend.closed


def test_model_and_predictor_are_immutable(model: LoadedModel, tmp_path: Path) -> None:
    predictor = Predictor.eager(model)
    for owner, name in ((model, "adapters"), (model, "codec"), (predictor, "backend"), (predictor, "model")):
        with pytest.raises(FrozenInstanceError):
            setattr(owner, name, None)
