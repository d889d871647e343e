"""Which of a model's engines is taken: the one that does what is asked, whole, for these very weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.denoiser.backends.base import BackendError
from services.denoiser.backends.graph_backend import Profile, Sizes
from services.denoiser.checkpoint.lora import Adapter
from services.denoiser.engines.build import (
    ONNX,
    EngineOptions,
    default_profile,
    ensure_engine,
    find_engine,
    key_of,
)
from services.denoiser.engines.store import Artefact, EngineStore
from services.denoiser.model.loaded import LoadedModel
from tests.tiny_model import save_tiny_model

pytest.importorskip("onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    return LoadedModel.load(save_tiny_model(tmp_path / "model", layers=2))


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


def make(model: LoadedModel, store: EngineStore, options: EngineOptions) -> Artefact:
    """As if it had been built."""

    def build(folder: Path) -> tuple[list[Path], dict[str, Any]]:
        (folder / "part-00.onnx").write_bytes(b"graph")
        return [folder / "part-00.onnx"], {}

    return store.ensure(key_of(model, options), build)


def test_adapters_make_another_engine(model: LoadedModel, store: EngineStore) -> None:
    plain = make(model, store, ONNX)
    assert find_engine(model, ONNX, store).digest == plain.digest
    for scale in (1.0, 0.5):
        adapted = replace(model, adapters=(Adapter("style", "ab" * 32, scale),))
        assert key_of(adapted, ONNX).digest != plain.digest
        with pytest.raises(BackendError, match="no engine of tiny"):
            find_engine(adapted, ONNX, store)


def test_what_is_asked_for_is_found_and_nothing_else(model: LoadedModel, store: EngineStore) -> None:
    whole = make(model, store, ONNX)
    assert find_engine(model, ONNX, store).digest == whole.digest
    make(model, store, replace(ONNX, fp8=True))
    usual = default_profile(model)
    make(model, store, replace(ONNX, profile=Profile(Sizes(1, 2, 4), usual.keys)))  # too narrow
    assert find_engine(model, ONNX, store).digest == whole.digest
    make(model, store, replace(ONNX, blocks_each=1))
    assert find_engine(model, replace(ONNX, blocks_each=1), store).key["blocks_each"] == 1
    assert find_engine(model, ONNX, store).key["fp8"] is False
    assert find_engine(model, replace(ONNX, fp8=True), store).key["fp8"] is True


def test_a_wider_profile_will_do_and_a_damaged_one_is_passed_over(
    model: LoadedModel, store: EngineStore
) -> None:
    usual = default_profile(model)
    wide = Profile(Sizes(1, usual.tokens.opt, 2 * usual.tokens.max), usual.keys)
    wider = make(model, store, replace(ONNX, profile=wide))
    assert find_engine(model, ONNX, store).digest == wider.digest
    damaged = make(model, store, ONNX)
    (damaged.folder / "part-00.onnx").write_bytes(b"")
    assert find_engine(model, ONNX, store).digest == wider.digest


def test_what_cannot_go_together_is_refused(model: LoadedModel) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BackendError, match="build without --blocks"):
        key_of(model, EngineOptions(weight_streaming=True, blocks_each=1))
    with pytest.raises(BackendError, match="precision: must be one of"):
        key_of(model, replace(ONNX, precision="int4"))


def test_a_build_that_fails_is_a_backends_error(
    model: LoadedModel, store: EngineStore, tmp_path: Path
) -> None:
    store.root.write_text("no folder")
    with pytest.raises(BackendError, match="building: FileExistsError"):
        ensure_engine(model, ONNX, store, lambda _: None)


def test_a_build_can_be_stopped(model: LoadedModel, store: EngineStore) -> None:
    with pytest.raises(BackendError, match="the export was stopped"):
        ensure_engine(model, ONNX, store, lambda _: False)
    assert list(store.manifests()) == []
