"""Verifies which engine of a model is selected: an intact one with the requested options and weights."""

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
    build_default_profile,
    build_engine_key,
    ensure_engine,
    find_engine,
)
from services.denoiser.engines.store import BuiltEngine, EngineStore
from services.denoiser.model.loaded import LoadedModel
from tests.tiny_model import save_tiny_model

pytest.importorskip("onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    return LoadedModel.load(save_tiny_model(tmp_path / "model", layers=2))


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


def store_fake_engine(model: LoadedModel, store: EngineStore, options: EngineOptions) -> BuiltEngine:
    """Stores an engine without building it."""

    def build(folder: Path) -> tuple[list[Path], dict[str, Any]]:
        (folder / "part-00.onnx").write_bytes(b"graph")
        return [folder / "part-00.onnx"], {}

    return store.ensure(build_engine_key(model, options), build)


def test_adapters_change_the_engine_key(model: LoadedModel, store: EngineStore) -> None:
    plain = store_fake_engine(model, store, ONNX)
    assert find_engine(model, ONNX, store).digest == plain.digest
    for scale in (1.0, 0.5):
        adapted = replace(model, adapters=(Adapter("style", "ab" * 32, scale),))
        assert build_engine_key(adapted, ONNX).digest != plain.digest
        with pytest.raises(BackendError, match="no engine of tiny"):
            find_engine(adapted, ONNX, store)


def test_find_engine_returns_only_engines_with_the_requested_options(
    model: LoadedModel, store: EngineStore
) -> None:
    engine = store_fake_engine(model, store, ONNX)
    assert find_engine(model, ONNX, store).digest == engine.digest
    store_fake_engine(model, store, replace(ONNX, fp8=True))
    default = build_default_profile(model)
    store_fake_engine(
        model, store, replace(ONNX, profile=Profile(Sizes(1, 2, 4), default.keys))
    )  # too narrow
    assert find_engine(model, ONNX, store).digest == engine.digest
    store_fake_engine(model, store, replace(ONNX, blocks_each=1))
    assert find_engine(model, replace(ONNX, blocks_each=1), store).key["blocks_each"] == 1
    assert find_engine(model, ONNX, store).key["fp8"] is False
    assert find_engine(model, replace(ONNX, fp8=True), store).key["fp8"] is True


def test_find_engine_accepts_wider_profiles_and_ignores_damaged_engines(
    model: LoadedModel, store: EngineStore
) -> None:
    default = build_default_profile(model)
    wide = Profile(Sizes(1, default.tokens.opt, 2 * default.tokens.max), default.keys)
    wider = store_fake_engine(model, store, replace(ONNX, profile=wide))
    assert find_engine(model, ONNX, store).digest == wider.digest
    damaged = store_fake_engine(model, store, ONNX)
    (damaged.folder / "part-00.onnx").write_bytes(b"")
    assert find_engine(model, ONNX, store).digest == wider.digest


def test_engine_key_rejects_invalid_options(model: LoadedModel) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BackendError, match="build without --blocks"):
        build_engine_key(model, EngineOptions(weight_streaming=True, blocks_each=1))
    with pytest.raises(BackendError, match="precision: must be one of"):
        build_engine_key(model, replace(ONNX, precision="int4"))


def test_build_failure_raises_a_backend_error(model: LoadedModel, store: EngineStore, tmp_path: Path) -> None:
    store.root.write_text("no folder")
    with pytest.raises(BackendError, match=r"cannot be written: .*File exists"):
        ensure_engine(model, ONNX, store, lambda _: None)


def test_build_can_be_cancelled(model: LoadedModel, store: EngineStore) -> None:
    with pytest.raises(BackendError, match="the export was cancelled"):
        ensure_engine(model, ONNX, store, lambda _: False)
    assert list(store.manifests()) == []
