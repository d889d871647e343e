"""Tests of refusals: files that are often given by mistake are named for what they are, with what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from services.denoiser.checkpoint.config import read_network_sizes
from services.denoiser.checkpoint.lora import Lora
from services.denoiser.checkpoint.names import build_renamer
from services.denoiser.checkpoint.weights import WeightsError, check_weights
from services.denoiser.codec.wan_vae import read_geometry
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.spec import SpecError, load_spec
from services.denoiser.network.wan import WanConfig, WanTransformer
from tests.tiny_model import save_tiny_model

pytestmark = pytest.mark.fault("misleading-refusals")

CONFIG = WanConfig(in_channels=4, out_channels=4, heads=2, head_dim=6, ffn_dim=8, layers=1, text_dim=5)
STATE = WanTransformer(CONFIG).state_dict()
SHAPES = {name: tensor.shape for name, tensor in STATE.items()}
Q = "blocks.0.attn1.to_q"
ADAPTER = {f"{Q}.lora_A.weight": torch.ones(2, 12), f"{Q}.lora_B.weight": torch.ones(12, 2)}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 28\n"
FOREIGN: dict[str, tuple[bytes, str]] = {
    "LFS pointer": (LFS, r"is a Git LFS pointer .*\(expected safetensors\)"),
    "web page": (b"<!doctype html><title>Sign in</title>", "is a web page"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(99), "is a GGUF file, .*use the release in safetensors"),
    "empty": (b"", "is empty: its download was interrupted"),
    "JSON": (b'{"weights": 1}', "is a JSON file"),
}


READERS: dict[str, Callable[[Path], object]] = {
    "weights": lambda path: check_weights(path, SHAPES),
    "adapter": lambda path: Lora.load(path, SHAPES, id="style"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("role", READERS)
def test_file_of_another_kind_is_named(tmp_path: Path, kind: str, role: str) -> None:
    content, message = FOREIGN[kind]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"model\.safetensors: {message}"):
        READERS[role](file)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_named_whatever_their_name(tmp_path: Path, name: str) -> None:
    torch.save(STATE, tmp_path / name)
    with pytest.raises(WeightsError, match=r"is a pickled PyTorch file, .*use the release"):
        check_weights(tmp_path / name, SHAPES)


def test_folder_of_pickled_weights_is_named(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"it holds diffusion_pytorch_model\.bin, which is a pickled"):
        check_weights(tmp_path, SHAPES)


def test_truncated_file_asks_to_be_fetched_again(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(STATE, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="truncated or altered; fetch it again"):
        check_weights(file, SHAPES)


def write_index(folder: Path, shards: int) -> Path:
    index = folder / "model.safetensors.index.json"
    places = {f"w{i}": f"model-{i:05}-of-{shards:05}.safetensors" for i in range(shards)}
    index.write_text(json.dumps({"weight_map": places}))
    for name in places.values():
        save_file({"w": torch.ones(1)}, folder / name)
    return index


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ([1], r"names 6 shards, of which model-00001-of-00006\.safetensors is missing: fetch"),
        (
            [0, 1, 2, 3, 4],
            r"00002-of-00006\.safetensors and 2 more are missing: fetch the whole",
        ),
    ],
)
def test_missing_shards_are_named_before_any_is_read(tmp_path: Path, gone: list[int], message: str) -> None:
    index = write_index(tmp_path, 6)
    for i in gone:
        (tmp_path / f"model-{i:05}-of-00006.safetensors").unlink()
    for path in (index, tmp_path):
        with pytest.raises(WeightsError, match=message):
            check_weights(path, SHAPES)


def test_shards_without_their_index_ask_for_it(tmp_path: Path) -> None:
    write_index(tmp_path, 2).unlink()
    with pytest.raises(WeightsError, match=r"are shards; fetch their \*\.safetensors\.index\.json as well"):
        check_weights(tmp_path, SHAPES)


def test_several_files_in_a_folder_are_listed(tmp_path: Path) -> None:
    for name in ("fp16", "fp32"):
        save_file(STATE, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match=r"not 2: name one of fp16\.safetensors, fp32\.safetensors$"):
        check_weights(tmp_path, SHAPES)


def test_other_json_is_not_taken_for_an_index(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"not an index .*: name a \*\.safetensors\.index\.json"):
        check_weights(tmp_path / "config.json", SHAPES)


def test_adapter_among_the_weights_and_the_reverse_are_named(tmp_path: Path) -> None:
    adapter, weights = tmp_path / "adapter.safetensors", tmp_path / "weights.safetensors"
    save_file({f"diffusion_model.{name}": tensor for name, tensor in ADAPTER.items()}, adapter)
    save_file(STATE, weights)
    with pytest.raises(WeightsError, match=r"is part of an adapter, .* under \[\[adapters"):
        check_weights(adapter, SHAPES, build_renamer(SHAPES))
    with pytest.raises(WeightsError, match=r"holds whole weights, not an adapter: name it under \[weights\]"):
        Lora.load(weights, SHAPES, id="style")


def test_folder_of_an_adapter_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    torch.save(ADAPTER, tmp_path / "adapter_model.bin")
    with pytest.raises(WeightsError, match="pickled"):
        Lora.load(tmp_path, SHAPES, id="style")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {f"{Q}.weight": torch.ones(12, 12).to(torch.float8_e4m3fn)},
            "type F8_E4M3, .*quantised weights",
        ),
        (
            {f"{Q}.weight": torch.ones(12, 12, dtype=torch.int8)},
            "type I8, .*quantised weights are not",
        ),
        ({f"{Q}.qweight": torch.ones(2, 2, dtype=torch.int32)}, "type I32, .*quantised weights are not"),
        ({"scaled_fp8": torch.ones(0)}, "tensor scaled_fp8: .*quantised weights are not supported"),
        ({f"{Q}.weight.absmax": torch.ones(2)}, "no such parameter .*: quantised weights are not supported"),
        (
            {f"{Q}.scale_weight": torch.ones(1)},
            "quantised weights .*; use the release in bfloat16",
        ),
        (
            {"decoder.mid_block.resnets.0.norm1.gamma": torch.ones(1)},
            "another network, a convolutional network",
        ),
        ({"blocks.0.attn2.add_k_proj.weight": torch.ones(1)}, "of another network, image-to-video Wan"),
        ({"first_stage_model.conv1.weight": torch.ones(1)}, "a checkpoint of several networks in one file"),
        ({"elsewhere": torch.ones(1)}, "tensor elsewhere: no such parameter in this architecture$"),
    ],
)
def test_weights_of_another_kind_or_network_are_named(
    tmp_path: Path, extra: dict[str, torch.Tensor], message: str
) -> None:
    file = tmp_path / "model.safetensors"
    save_file(STATE | extra, file)
    with pytest.raises(WeightsError, match=message):
        check_weights(file, SHAPES)


def write_pipeline(folder: Path) -> Path:
    """Writes the files by which a folder is known as a pipeline of diffusers."""
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    for component in ("transformer", "vae"):
        (folder / component).mkdir()
        (folder / component / "config.json").write_text("{}")
    return folder


def test_root_of_a_pipeline_names_its_components(tmp_path: Path) -> None:
    root = write_pipeline(tmp_path / "pipeline")
    with pytest.raises(WeightsError, match=r"name the folder of one component \(transformer"):
        check_weights(root, SHAPES)
    with pytest.raises(ValueError, match=r"No such file.*pipeline is the folder of a diffusers pipeline"):
        read_geometry(root / "config.json")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_class_name": "WanTransformer3DModel", "quantization_config": {"quant_method": "awq"}},
            r"\(awq\)",
        ),
        (
            {"_class_name": "AutoencoderKLWan"},
            "or WanModel, not 'AutoencoderKLWan'",
        ),
    ],
)
def test_config_of_another_kind_is_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read_network_sizes(path)


def test_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(LFS)
    with pytest.raises(ValueError, match="not JSON: is a Git LFS pointer"):
        read_network_sizes(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"is a folder: name the config\.json in it"):
        read_network_sizes(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "not TOML; it is a Git LFS pointer"),
        (b"<html></html>", "not TOML; it is a web page"),
        (b'{"id": "model"}', "not TOML; it is a JSON file; a model is described by a TOML file"),
        (b"GGUF\x03\0\0\0\xff\xfe", "not TOML; it is a GGUF file"),
        (b"\x80\x02\x8a\n\xff", "not TOML; it is a pickled PyTorch file"),
        (b"Readme of a model", "not TOML: Expected '=' after a key"),
    ],
)
def test_model_file_of_another_kind_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=rf"model\.toml: {message}"):
        load_spec(path)


def test_weights_given_as_the_model_file_are_named(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(SpecError, match="it is a safetensors file; a model is described by a TOML file"):
        load_spec(tmp_path / "model.safetensors")


def test_folder_given_as_the_model_file_names_the_file_in_it(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "tiny")
    with pytest.raises(SpecError, match=rf"tiny: is a folder; name the model file in it, {path}"):
        LoadedModel.load(path.parent)
    with pytest.raises(SpecError, match=r"is a folder that is the folder of a diffusers pipeline.*; a model"):
        LoadedModel.load(write_pipeline(tmp_path / "pipeline"))


def test_autoencoder_of_the_original_release_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanModel"}))
    with pytest.raises(
        ValueError, match=r"must be AutoencoderKLWan, not 'WanModel'; .*original release of Wan"
    ):
        read_geometry(tmp_path / "config.json")
    file = tmp_path / "Wan2.1_VAE.safetensors"
    save_file({"decoder.upsamples.0.residual.0.gamma": torch.ones(1)}, file)
    expected = {"decoder.up_blocks.0.resnets.0.norm1.gamma": torch.Size([1])}
    with pytest.raises(WeightsError, match="an autoencoder in the names of Wan's original release"):
        check_weights(file, expected)


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "F6_E2M3"])
def test_types_of_new_quantisations_are_named(tmp_path: Path, dtype: str) -> None:
    """Types that only quantised weights have; the file is whole, so fetching it again would not help."""
    header = json.dumps({"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(WeightsError, match=rf"unknown type {dtype}: quantised weights are") as caught:
        check_weights(file, {"a": torch.Size([4])})
    assert "again" not in str(caught.value)
