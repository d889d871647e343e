"""Verifies that every backend predicts the same as the network itself, for any tokens and amplification."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chorus.common.v1 import plan_pb2
from torch import Tensor

from services.denoiser.backends.base import Backend, StepInputs
from services.denoiser.backends.compiled import compiled_backend
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.engines.build import ONNX, ensure_engine, load_engine
from services.denoiser.engines.store import EngineStore
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.network.text import AmplifiedText
from services.denoiser.reuse.amplification import amplify_text
from tests.tiny_model import TEXT_DIM, save_host_adapter, save_tiny_model

SHAPE = (12, 2, 16, 16)
TOLERANCE = 1e-5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Runs torch with one thread: for a tiny network, synchronising threads takes longer than computing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return LoadedModel.load(save_tiny_model(tmp_path_factory.mktemp("model"), layers=3))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = save_tiny_model(tmp_path_factory.mktemp("hosted"), layers=3)
    save_host_adapter(path)
    found = LoadedModel.load(path).host
    assert found is not None
    return found


def build_onnx_backend(model: LoadedModel, folder: Path, blocks: int, plugin: bool = False) -> Backend:
    pytest.importorskip("onnxruntime")
    options = replace(ONNX, blocks_each=blocks, plugin=plugin)
    return load_engine(model, ensure_engine(model, options, EngineStore(folder), lambda _: None), options)


FACTORIES: dict[str, Callable[[LoadedModel, Path], Backend]] = {
    "torch": lambda model, _: EagerBackend(model.transformer),
    "torch with the operator": lambda model, _: EagerBackend(model.transformer, kernel=True),
    "compiled": lambda model, _: compiled_backend(model.transformer),
    "onnxruntime": lambda model, folder: build_onnx_backend(model, folder, 0),
    "onnxruntime, one block per part": lambda model, folder: build_onnx_backend(model, folder, 1),
    "onnxruntime with the plugin node": lambda model, folder: build_onnx_backend(
        model, folder, 2, plugin=True
    ),
}


@pytest.fixture(scope="module", params=FACTORIES)
def backend(
    request: pytest.FixtureRequest, model: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    backend = FACTORIES[request.param](model, tmp_path_factory.mktemp("engines"))
    yield backend
    backend.close()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prepare_text(model: LoadedModel, length: int, seed: int) -> tuple[tuple[Tensor, Tensor], ...]:
    return model.prepare_text(random(length, TEXT_DIM, seed=seed))


def amplification(form: str, first_layer: int = 0) -> plan_pb2.Amplification:
    return plan_pb2.Amplification(
        form=plan_pb2.AmplificationForm.Value(f"AMPLIFICATION_FORM_{form}"),
        strength=0.7,
        first_layer=first_layer,
    )


def texts(model: LoadedModel) -> dict[str, AmplifiedText]:
    own, donor = prepare_text(model, 3, 1), prepare_text(model, 5, 2)
    gained = [(1, 1.0), (2, 0.5)]
    return {
        "plain": AmplifiedText(own),
        "one token": AmplifiedText(prepare_text(model, 1, 3)),
        "contrast": amplify_text(own, amplification("CONTRAST"), donor=donor),
        "contrast in the last blocks": amplify_text(
            own, amplification("CONTRAST", first_layer=2), donor=donor
        ),
        "contrast with a shorter prompt": amplify_text(donor, amplification("CONTRAST"), donor=own),
        "bias": amplify_text(own, amplification("BIAS"), gained=gained),
        "bias in the last blocks": amplify_text(own, amplification("BIAS", first_layer=2), gained=gained),
        "value gain": amplify_text(own, amplification("VALUE_GAIN"), gained=gained),
    }


def inputs(
    model: LoadedModel, text: AmplifiedText, count: int, seen: list[Tensor] | None = None
) -> StepInputs:
    """Returns inputs for a random but reproducible subset of a video's tokens."""
    tokens = model.to_tokens(random(*SHAPE, seed=4))
    index = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(count))[:count].sort().values
    grid = model.grid_inputs(SHAPE)

    def on_attention(block: int, queries: Tensor, keys: Tensor) -> None:
        assert seen is not None
        seen.extend((torch.tensor(block), queries, keys))

    return StepInputs(
        tokens[index][None],
        grid.rope_cos[index],
        grid.rope_sin[index],
        text,
        torch.tensor([700.0]),
        None if seen is None else on_attention,
    )


@torch.inference_mode()
def test_predictions_equal_the_network_for_any_tokens_and_form(backend: Backend, model: LoadedModel) -> None:
    network = EagerBackend(model.transformer)
    every = len(model.to_tokens(random(*SHAPE)))
    counts = [1, 2, 5, every - 1, every]
    if backend.name == "compiled":
        counts = [5, every]  # a single token needs a separate graph, and each graph takes seconds to compile
    for name, text in texts(model).items():
        for count in counts:
            step = inputs(model, text, count)
            assert backend.unsupported_reason(step) is None
            expected, actual = network.predict(step), backend.predict(step)
            assert actual.shape == expected.shape
            assert actual.dtype == expected.dtype
            error = float((actual - expected).abs().max() / expected.abs().max())
            assert error <= TOLERANCE, (name, count, error)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["torch with the operator", "compiled", "onnxruntime"])
def test_host_predicts_and_is_observed_alike_on_every_backend(
    name: str, host: LoadedModel, model: LoadedModel, tmp_path: Path
) -> None:
    plain, network = EagerBackend(model.transformer), EagerBackend(host.transformer)
    backend = FACTORIES[name](host, tmp_path)
    for text in texts(host).values():
        seen: list[Tensor] = []
        expected_seen: list[Tensor] = []
        actual = backend.predict(inputs(host, text, 5, seen))
        expected = network.predict(inputs(host, text, 5, expected_seen))
        largest = expected.abs().max()
        assert float((actual - expected).abs().max() / largest) <= TOLERANCE
        assert float((plain.predict(inputs(model, text, 5)) - expected).abs().max() / largest) > 0.01
        assert len(seen) == len(expected_seen) > 0
        for found, wanted in zip(seen, expected_seen, strict=True):
            assert torch.allclose(found, wanted, atol=1e-4)
    backend.close()


@torch.inference_mode()
def test_gated_contrast_changes_only_gated_tokens(backend: Backend, model: LoadedModel) -> None:
    own, donor = prepare_text(model, 3, 1), prepare_text(model, 5, 2)
    plain = inputs(model, AmplifiedText(own), 6)
    for gate in (torch.zeros(6), torch.ones(6), torch.linspace(0, 1, 6)):
        text = amplify_text(own, amplification("CONTRAST"), donor=donor, gate=gate)
        step = replace(plain, text=text)
        expected = EagerBackend(model.transformer).predict(step)
        torch.testing.assert_close(backend.predict(step), expected, rtol=0, atol=TOLERANCE)
    off = amplify_text(own, amplification("CONTRAST"), donor=donor, gate=torch.zeros(6))
    torch.testing.assert_close(
        backend.predict(replace(plain, text=off)), backend.predict(plain), rtol=0, atol=TOLERANCE
    )


@torch.inference_mode()
def test_attention_observer_receives_the_same_as_from_the_network(
    backend: Backend, model: LoadedModel
) -> None:
    text = texts(model)["contrast"]
    seen: list[list[Tensor]] = [[], []]
    for calls, observed in zip(seen, (EagerBackend(model.transformer), backend), strict=True):
        observed.predict(inputs(model, text, 9, calls))
    assert len(seen[0]) == len(seen[1]) > 0
    for expected, actual in zip(*seen, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_gated_bias_is_applied_or_rejected_with_a_reason(backend: Backend, model: LoadedModel) -> None:
    own = prepare_text(model, 3, 1)
    gated = amplify_text(own, amplification("BIAS"), gained=[(1, 1.0)], gate=torch.linspace(0, 1, 6))
    step = inputs(model, gated, 6)
    if reason := backend.unsupported_reason(step):
        assert backend.name != "torch"
        assert "bias gated by token" in reason
        return
    expected = EagerBackend(model.transformer).predict(step)
    torch.testing.assert_close(backend.predict(step), expected, rtol=0, atol=TOLERANCE)
    plain = backend.predict(replace(step, text=AmplifiedText(own)))
    assert not torch.allclose(plain, expected, atol=10 * TOLERANCE)


def test_drain_reports_the_name_of_the_backend(backend: Backend) -> None:
    assert backend.drain().backend == backend.name
    assert backend.drain().fallback == ""
    assert backend.fallback_steps == 0
