"""Tests of the backend that the settings select: "auto", its fallback to torch, and the graphs it stores."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from services.denoiser.backends.base import Backend, BackendError
from services.denoiser.engines import build, select
from services.denoiser.engines.build import ONNX, build_engine_key
from services.denoiser.engines.select import choose_backend, select_backend
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.sampler import sample
from services.denoiser.settings import DenoiserSettings
from tests.tiny_model import TEXT_DIM, save_tiny_model

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return LoadedModel.load(save_tiny_model(tmp_path_factory.mktemp("model"), layers=2))


@pytest.fixture(scope="module")
def folder(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the graph of the model."""
    path = tmp_path_factory.mktemp("engines")
    assert choose(model, path)[1] == ["exporting part 1 of 1: blocks 0 to 1"]
    return path


def choose(model: LoadedModel, folder: Path, **settings: object) -> tuple[Backend, list[str]]:
    """Returns the backend of the settings, and the progress of its build."""
    progress: list[str] = []
    configured = DenoiserSettings.model_validate({"engines": folder, **settings})
    return choose_backend(model, configured, lambda words: progress.append(words)), progress


def generate(
    model: LoadedModel, backend: Backend, start: Tensor | None = None, first: int = 0
) -> list[Tensor]:
    """Returns the latents at boundary `first`, which is noise or `start`, and at every later boundary."""
    shape = model.latent_shape(2, 16, 16)
    states = torch.randn(5, TEXT_DIM, generator=torch.Generator().manual_seed(first))
    text, predictor = model.prepare_text(states), Predictor(model, backend)
    begin = model.noise(7, shape) if start is None else start
    sigmas = model.spec.schedule.sigmas[first:]
    return [begin, *sample(lambda x, sigma: predictor.latent_velocity(x, sigma, text), begin, sigmas)]


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def test_auto_is_onnxruntime_for_float32_on_a_cpu(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DenoiserSettings().backend == "auto"
    assert select_backend(model) == ("onnxruntime", "the device is a CPU")
    on_gpu = replace(model, device=torch.device("cuda"))
    assert select_backend(on_gpu) == ("torch", "the device is cuda")
    monkeypatch.setattr(select, "_AUTO_MAX_BYTES", 1000)
    name, reason = select_backend(model)
    assert (name, "more than 1000" in reason) == ("torch", True)


def test_auto_is_torch_in_bfloat16(tmp_path: Path) -> None:
    model = LoadedModel.load(save_tiny_model(tmp_path), dtype=torch.bfloat16)
    assert select_backend(model) == ("torch", "the model computes in bfloat16")


def test_auto_is_torch_without_onnxruntime(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "_ONNX_PACKAGES", ("onnx", "no_such_package"))
    assert select_backend(model) == ("torch", "not installed: no_such_package")
    backend, progress = choose(model, tmp_path)
    assert (backend.name, progress) == ("torch", [])
    backend.close()


def test_second_start_loads_the_graph_of_the_first(model: LoadedModel, folder: Path) -> None:
    backend, progress = choose(model, folder)
    assert (backend.name, progress) == ("onnxruntime", [])
    backend.close()


def test_self_attention_of_every_block_is_one_node(folder: Path) -> None:
    [path] = folder.glob("*/part-00.onnx")
    nodes = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    assert nodes.count("MultiHeadAttention") == 2
    assert nodes.count("Softmax") == 2  # cross-attention


def test_damaged_graph_is_exported_again(model: LoadedModel, folder: Path, tmp_path: Path) -> None:
    first, _ = choose(model, folder)
    damaged = shutil.copytree(folder, tmp_path / "engines")
    [graph] = damaged.glob("*/part-00.onnx.data")
    graph.write_bytes(b"?" + graph.read_bytes()[1:])
    second, progress = choose(model, damaged)
    assert progress == ["exporting part 1 of 1: blocks 0 to 1"]
    assert torch.equal(generate(model, first)[-1], generate(model, second)[-1])


def test_folder_that_cannot_be_written_leaves_the_steps_to_torch(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    backend, _ = choose(model, tmp_path / "file" / "engines")
    latents = generate(model, backend)
    report = backend.drain()
    assert backend.name == "onnxruntime"
    assert report.backend == "torch"
    assert "let CHORUS_DENOISER_ENGINES name a writable directory" in report.fallback
    assert backend.fallback_steps == 4
    assert torch.equal(latents[-1], generate(model, Predictor.eager(model).backend)[-1])
    with pytest.raises(BackendError, match="CHORUS_DENOISER_ENGINES"):
        choose(model, tmp_path / "file" / "engines", backend_fallback=False)


def test_code_and_version_of_onnxruntime_select_another_graph(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = build_engine_key(model, ONNX)
    with monkeypatch.context() as patch:
        patch.setattr("onnxruntime.__version__", "0.0")
        assert build_engine_key(model, ONNX).digest != key.digest
    changed = tmp_path / "wan.py"
    changed.write_bytes(build._GRAPH_SOURCES[0].read_bytes() + b"\n")
    monkeypatch.setattr(build, "_GRAPH_SOURCES", (changed, *build._GRAPH_SOURCES[1:]))
    assert build_engine_key(model, ONNX).digest != key.digest


def test_equal_seeds_give_equal_bits_on_onnxruntime(model: LoadedModel, folder: Path) -> None:
    runs = [generate(model, choose(model, folder)[0]) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.fault("identity")
def test_latents_of_one_backend_can_be_reused_by_the_other(model: LoadedModel, folder: Path) -> None:
    """Verifies the reason why the identity has no backend: the difference is far below that of bfloat16."""
    backends = {"torch": Predictor.eager(model).backend, "onnxruntime": choose(model, folder)[0]}
    donors = {name: generate(model, backend) for name, backend in backends.items()}
    for boundary in range(1, 5):
        error = relative(donors["onnxruntime"][boundary], donors["torch"][boundary])
        assert 0 < error <= 1e-5, (boundary, error)
    for first in (1, 2, 3):
        own = generate(model, backends["torch"], donors["torch"][first], first)[-1]
        mixed = generate(model, backends["onnxruntime"], donors["torch"][first], first)[-1]
        assert relative(mixed, own) <= 1e-5, first
