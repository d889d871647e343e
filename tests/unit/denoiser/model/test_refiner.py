"""Tests of the text refiner: checked when it is loaded, applied to the real tokens, part of the identity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from services.denoiser.checkpoint.weights import WeightsError
from services.denoiser.model.identity import model_digest
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.spec import SpecError, load_spec
from services.denoiser.network.refiner import TextRefiner
from tests.tiny_model import TEXT_DIM, save_refiner, save_tiny_model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model", layers=2)


def test_states_pass_the_refiner_before_the_network(path: Path) -> None:
    plain = LoadedModel.load(path)
    save_refiner(path)
    model = LoadedModel.load(path)
    assert model.refiner is not None
    states = torch.randn(5, TEXT_DIM)
    expected = plain.prepare_text(model.refiner(states[None])[0])
    for found, wanted in zip(model.prepare_text(states), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert not torch.allclose(plain.prepare_text(states)[0][0], model.prepare_text(states)[0][0])


def test_padding_changes_no_state() -> None:
    torch.manual_seed(0)
    refiner = TextRefiner(TEXT_DIM, 16, 2, 1).eval()
    states = torch.randn(1, 4, TEXT_DIM)
    padded = torch.cat([states, torch.randn(1, 3, TEXT_DIM)], 1)
    padding = torch.tensor([[False] * 4 + [True] * 3])
    torch.testing.assert_close(refiner(padded, padding)[:, :4], refiner(states))


def test_another_refiner_is_another_identity(path: Path) -> None:
    before = path.read_text()
    digests = {model_digest(load_spec(path), fp8=False)}
    for seed in (0, 1):
        path.write_text(before)
        save_refiner(path, seed=seed)
        digests.add(model_digest(load_spec(path), fp8=False))
    assert len(digests) == 3


def test_weights_of_another_size_are_refused(path: Path) -> None:
    save_refiner(path, dim=24)
    with pytest.raises(WeightsError, match=r"refiner-0\.safetensors.*shape"):
        LoadedModel.load(path)


def test_other_weights_are_refused(path: Path) -> None:
    file = save_refiner(path)
    save_file(TextRefiner(TEXT_DIM, 16, 2, 1).state_dict(), file)
    with pytest.raises(WeightsError, match="sha256"):
        LoadedModel.load(path)


def test_heads_must_divide_the_size(path: Path) -> None:
    save_refiner(path)
    path.write_text(path.read_text().replace("heads = 2\nlayers = 1\n", "heads = 3\nlayers = 1\n"))
    with pytest.raises(SpecError, match=r"text\.refiner.*multiple of heads = 3"):
        load_spec(path)
