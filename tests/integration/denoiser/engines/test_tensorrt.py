"""Verifies how TensorRT-RTX, which builds engines without a GPU, fuses the graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from services.denoiser.backends.base import BackendError
from services.denoiser.backends.graph_backend import Profile, Sizes
from services.denoiser.engines.build import ONNX, EngineOptions, ensure_engine, find_engine, load_engine
from services.denoiser.engines.onnx_export import export
from services.denoiser.engines.store import EngineStore
from services.denoiser.engines.tensorrt_builder import BuildOptions, BuildResult, build_engine
from services.denoiser.engines.verify import compare
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.network.wan import WanConfig, WanTransformer
from services.denoiser.settings import SHIPPED_MODEL
from tests.tiny_model import save_host_adapter, save_tiny_model

trt: ModuleType = pytest.importorskip(
    "tensorrt_rtx", reason="no wheel of TensorRT-RTX exists for this machine"
)

LAYERS = 2
PROFILE = Profile(Sizes(1, 4096, 32_768), Sizes(1, 512, 512))


@pytest.fixture(scope="module")
def network() -> WanTransformer:
    """Two blocks of a Wan network at a quarter of the width, with head size 128 and random weights."""
    torch.manual_seed(0)
    config = WanConfig(heads=3, ffn_dim=1024, layers=LAYERS, text_dim=64)
    return WanTransformer(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def graph(network: WanTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    [path] = export(network, tmp_path_factory.mktemp("graph"), torch.bfloat16, 0, lambda _: None)
    return path


def build(graph: Path, profile: Profile = PROFILE, options: BuildOptions | None = None) -> BuildResult:
    return build_engine(trt, graph, 2 * LAYERS, profile, options or BuildOptions(), lambda _: None)


@pytest.mark.parametrize("target", ["current", "sm_89"])
def test_every_attention_is_one_kernel_and_no_mask_is_expanded(graph: Path, target: str) -> None:
    layers = build(graph, options=BuildOptions(target=target)).layers
    assert (layers.attentions, layers.fused) == (2 * LAYERS, 2 * LAYERS)
    # One value per key of both texts, for any number of tokens.
    assert layers.masks == ((-1, 1, 1, -1),) * LAYERS
    assert layers.masks_expanded == 0


@pytest.mark.parametrize(
    "profile",
    [
        Profile(Sizes(1, 1, 2), Sizes(1, 1, 2)),
        Profile(Sizes(32_760, 32_760, 32_760), Sizes(512, 512, 512)),
        Profile(Sizes(1, 9_828, 75_600), Sizes(1, 32, 512)),
    ],
)
def test_attentions_stay_fused_at_the_ends_of_the_profile(graph: Path, profile: Profile) -> None:
    built = build(graph, profile)
    assert built.layers.all_fused
    assert built.engine.nbytes > 0


def test_float32_attention_is_not_fused(network: WanTransformer, tmp_path: Path) -> None:
    [path] = export(network, tmp_path, torch.float32, 0, lambda _: None)
    assert build(path).layers.fused == 0


def test_weight_streaming_keeps_attentions_fused(graph: Path) -> None:
    assert build(graph, options=BuildOptions(weight_streaming=True)).layers.all_fused


def test_progress_is_reported(graph: Path) -> None:
    reported: list[str] = []
    build_engine(trt, graph, 2 * LAYERS, PROFILE, BuildOptions(), reported.append)
    assert reported


def test_unsupported_target_is_rejected(graph: Path) -> None:
    with pytest.raises(BackendError, match=r"target sm_90: tensorrt_rtx .* builds for .*sm_89"):
        build(graph, options=BuildOptions(target="sm_90"))


def test_invalid_graph_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "part-00.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match="cannot parse it"):
        build(tmp_path / "part-00.onnx")


@pytest.fixture(scope="module")
def shipped() -> LoadedModel:
    return LoadedModel.load(SHIPPED_MODEL)


def test_engines_of_the_shipped_model_are_built_and_found(shipped: LoadedModel, tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    options = EngineOptions(runtime="tensorrt_rtx", target="sm_89", blocks_each=4)
    engine = ensure_engine(shipped, options, store, lambda _: None)
    assert [path.name for path in engine.files] == ["part-00.engine", "part-01.engine"]
    assert sorted(path.name for path in engine.folder.iterdir()) == [
        "manifest.json",
        "part-00.engine",
        "part-01.engine",
    ]
    layers = engine.facts["layers"]
    assert (layers["attentions"], layers["fused"], layers["masks_expanded"]) == (14, 14, 0)
    assert find_engine(shipped, options, store).digest == engine.digest
    with pytest.raises(BackendError, match=r"no engine of shapes for .* on sm_80 .*chorus engine build"):
        find_engine(shipped, replace(options, target="sm_80"), store)
    with pytest.raises(BackendError, match="needs a CUDA device"):
        load_engine(shipped, engine, options)


def test_model_and_host_have_engines_of_their_own(tmp_path: Path) -> None:
    path, store = save_tiny_model(tmp_path / "model", layers=2), EngineStore(tmp_path / "engines")
    save_host_adapter(path)
    model = LoadedModel.load(path)
    options = EngineOptions(runtime="tensorrt_rtx", target="sm_89")
    plain, host = (ensure_engine(each, options, store, lambda _: None) for each in model.variants)
    assert plain.files[0].read_bytes() != host.files[0].read_bytes()
    assert [each.facts["layers"]["fused"] for each in (plain, host)] == [4, 4]
    assert [find_engine(each, options, store).digest for each in model.variants] == [
        plain.digest,
        host.digest,
    ]


def test_fp8_engine_is_close_to_torch_and_fused(tmp_path: Path) -> None:
    model = LoadedModel.load(save_tiny_model(tmp_path / "model", layers=1))
    store, report = EngineStore(tmp_path / "engines"), lambda _: None
    on_cpu = replace(ONNX, fp8=True)
    errors = compare(model, load_engine(model, ensure_engine(model, on_cpu, store, report), on_cpu))
    # Three bits of mantissa in one block with a few matrices: neither exact nor wrong.
    assert all(1e-4 < error.relative < 0.1 for error in errors.values())
    engine = ensure_engine(
        model, EngineOptions(runtime="tensorrt_rtx", fp8=True, target="sm_89"), store, report
    )
    assert engine.facts["layers"]["fused"] == engine.facts["layers"]["attentions"] == 2
