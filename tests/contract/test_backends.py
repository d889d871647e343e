"""Every backend predicts what the network itself does, for any tokens and by any amplification."""

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
from tests.tiny_model import TEXT_DIM, save_tiny_model

SHAPE = (12, 2, 16, 16)
TOLERANCE = 1e-5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of a tiny network wait for each other more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return LoadedModel.load(save_tiny_model(tmp_path_factory.mktemp("model"), layers=3))


def onnx(model: LoadedModel, folder: Path, blocks: int, plugin: bool = False) -> Backend:
    pytest.importorskip("onnxruntime")
    options = replace(ONNX, blocks_each=blocks, plugin=plugin)
    return load_engine(model, ensure_engine(model, options, EngineStore(folder), lambda _: None), options)


MAKERS: dict[str, Callable[[LoadedModel, Path], Backend]] = {
    "torch": lambda model, _: EagerBackend(model.transformer),
    "torch, by our own operator": lambda model, _: EagerBackend(model.transformer, kernel=True),
    "compiled": lambda model, _: compiled_backend(model.transformer),
    "onnxruntime": lambda model, folder: onnx(model, folder, 0),
    "onnxruntime, a block each": lambda model, folder: onnx(model, folder, 1),
    "onnxruntime, with the plugin's node": lambda model, folder: onnx(model, folder, 2, plugin=True),
}


@pytest.fixture(scope="module", params=MAKERS)
def backend(
    request: pytest.FixtureRequest, model: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    made = MAKERS[request.param](model, tmp_path_factory.mktemp("engines"))
    yield made
    made.close()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_of(model: LoadedModel, length: int, seed: int) -> tuple[tuple[Tensor, Tensor], ...]:
    return model.prepare_text(random(length, TEXT_DIM, seed=seed))


def amplification(form: str, **more: float) -> plan_pb2.Amplification:
    return plan_pb2.Amplification(
        form=plan_pb2.AmplificationForm.Value(f"AMPLIFICATION_FORM_{form}"), strength=0.7, **more
    )


def texts(model: LoadedModel) -> dict[str, AmplifiedText]:
    own, donor = text_of(model, 3, 1), text_of(model, 5, 2)
    gained = [(1, 1.0), (2, 0.5)]
    return {
        "plain": AmplifiedText(own),
        "one token": AmplifiedText(text_of(model, 1, 3)),
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
    """Some tokens of a video, chosen by chance but always the same ones."""
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
def test_any_tokens_by_every_form_as_the_network_itself(backend: Backend, model: LoadedModel) -> None:
    network = EagerBackend(model.transformer)
    every = len(model.to_tokens(random(*SHAPE)))
    counts = [1, 2, 5, every - 1, every]
    if backend.name == "compiled":
        counts = [5, every]  # one token is a graph of its own, and every graph takes its seconds to compile
    for name, text in texts(model).items():
        for count in counts:
            step = inputs(model, text, count)
            assert backend.unsupported(step) is None
            expected, found = network.predict(step), backend.predict(step)
            assert found.shape == expected.shape
            assert found.dtype == expected.dtype
            error = float((found - expected).abs().max() / expected.abs().max())
            assert error <= TOLERANCE, (name, count, error)


@torch.inference_mode()
def test_a_gated_contrast_changes_gated_tokens_only(backend: Backend, model: LoadedModel) -> None:
    own, donor = text_of(model, 3, 1), text_of(model, 5, 2)
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
def test_a_watch_is_told_what_the_network_tells(backend: Backend, model: LoadedModel) -> None:
    text = texts(model)["contrast"]
    seen: list[list[Tensor]] = [[], []]
    for found, who in zip(seen, (EagerBackend(model.transformer), backend), strict=True):
        who.predict(inputs(model, text, 9, found))
    assert len(seen[0]) == len(seen[1]) > 0
    for expected, found in zip(*seen, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_a_gated_bias_is_done_or_refused_in_words(backend: Backend, model: LoadedModel) -> None:
    own = text_of(model, 3, 1)
    gated = amplify_text(own, amplification("BIAS"), gained=[(1, 1.0)], gate=torch.linspace(0, 1, 6))
    step = inputs(model, gated, 6)
    if reason := backend.unsupported(step):
        assert backend.name != "torch"
        assert "bias gated by token" in reason
        return
    expected = EagerBackend(model.transformer).predict(step)
    torch.testing.assert_close(backend.predict(step), expected, rtol=0, atol=TOLERANCE)
    plain = backend.predict(replace(step, text=AmplifiedText(own)))
    assert not torch.allclose(plain, expected, atol=10 * TOLERANCE)


def test_a_step_is_reported_under_the_backends_name(backend: Backend) -> None:
    assert backend.drain().backend == backend.name
    assert backend.drain().fallback == ""
    assert backend.fallback_steps == 0
