"""Tests of the host adapter's weights: merged like other adapters, in a network that shares what stays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.denoiser.checkpoint.weights import WeightsError, weights_digest
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.model.spec import SpecError, load_spec
from tests.tiny_model import TEXT_DIM, save_host_adapter, save_tiny_model, write_host_section


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model", layers=2)


def load_parameters(model: LoadedModel | None) -> Mapping[str, Tensor]:
    assert model is not None
    return model.transformer.state_dict()


def predict(model: LoadedModel | None) -> Tensor:
    assert model is not None
    text = model.prepare_text(torch.ones(3, TEXT_DIM))
    noise = model.noise(0, model.latent_shape(2, 16, 16))
    return Predictor.eager(model).latent_velocity(noise, 0.9, text)


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_network_is_that_of_a_model_without_the_adapter(path: Path, dtype: torch.dtype) -> None:
    without = LoadedModel.load(path, dtype=dtype)
    save_host_adapter(path)
    model = LoadedModel.load(path, dtype=dtype)
    assert equal(load_parameters(model), load_parameters(without))
    assert torch.equal(predict(model), predict(without))
    assert not torch.equal(predict(model.host), predict(model))
    assert without.host is None
    assert (model.adapters, model.variants) == (without.adapters, (model, model.host))


def test_host_equals_a_model_that_merges_the_adapter_after_its_others(path: Path) -> None:
    save_file(
        {"diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(24)}, path.parent / "style.safetensors"
    )
    style = write_adapter("style", path.parent / "style.safetensors")
    path.write_text(path.read_text() + style)
    file = save_host_adapter(path)
    host = LoadedModel.load(path, dtype=torch.bfloat16).host
    plain_file = path.read_text().partition("[host]")[0]
    path.write_text(plain_file + write_adapter("host", file))
    merged = LoadedModel.load(path, dtype=torch.bfloat16)
    assert host is not None
    assert equal(load_parameters(host), load_parameters(merged))
    assert host.adapters == merged.adapters


def write_adapter(id: str, file: Path) -> str:
    return f'\n[[adapters]]\nid = "{id}"\nfile = "{file.name}"\nsha256 = "{weights_digest(file)}"\n'


def test_host_shares_codec_and_every_parameter_that_the_adapter_leaves(path: Path) -> None:
    file = path.parent / "host.safetensors"
    save_file({"diffusion_model.blocks.0.self_attn.q.diff": torch.ones(24, 24)}, file)
    write_host_section(path, file)
    model = LoadedModel.load(path)
    assert model.host is not None
    plain, host = load_parameters(model), load_parameters(model.host)
    own = {name for name in plain if plain[name].data_ptr() != host[name].data_ptr()}
    assert own == {"blocks.0.attn1.to_q.weight"}
    assert model.host.codec is model.codec
    assert not any(parameter.requires_grad for parameter in model.host.transformer.parameters())


def test_adapter_of_zeros_and_one_of_scale_zero_change_nothing(path: Path) -> None:
    plain = predict(LoadedModel.load(path))
    file = save_host_adapter(path, size=0.0)
    assert torch.equal(predict(LoadedModel.load(path).host), plain)
    save_host_adapter(path)
    write_host_section(path, file, scale="0.0")
    assert torch.equal(predict(LoadedModel.load(path).host), plain)


def test_adapters_of_peft_and_of_original_names_give_the_same_host(path: Path) -> None:
    file = save_host_adapter(path)
    factors, expected = load_file(file), load_parameters(LoadedModel.load(path).host)
    folder = path.parent / "peft"
    folder.mkdir()
    renamed = {f"base_model.model.{name.removeprefix('transformer.')}": x for name, x in factors.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    write_host_section(path, folder)
    assert equal(load_parameters(LoadedModel.load(path).host), expected)
    original = {"attn1": "self_attn", "attn2": "cross_attn", "to_q": "q", "to_k": "k", "to_v": "v"} | {
        "to_out.0": "o",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
    }
    renamed = {}
    for name, factor in factors.items():
        name = name.replace("transformer.", "diffusion_model.", 1)
        for ours, theirs in original.items():
            name = name.replace(ours, theirs)
        renamed[name] = factor
    save_file(renamed, file)
    write_host_section(path, file)
    assert equal(load_parameters(LoadedModel.load(path).host), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": '"A b"'}, r"model\.toml: host\.id: "),
        ({"sha256": '"ab"'}, r"model\.toml: host\.sha256: "),
        ({"scale": "inf"}, r"model\.toml: host\.scale: "),
        ({"file": '""'}, r"model\.toml: host\.file: "),
        ({"boundaries": "[1, 2, 3]"}, r"model\.toml: host\.boundaries: Extra inputs are not permitted"),
    ],
)
def test_invalid_field_is_named(path: Path, fields: dict[str, str], message: str) -> None:
    write_host_section(path, save_host_adapter(path), **fields)
    with pytest.raises(SpecError, match=message):
        load_spec(path)


def test_digest_is_required_for_a_local_file(path: Path) -> None:
    save_host_adapter(path)
    path.write_text("\n".join(x for x in path.read_text().splitlines() if not x.startswith("sha256")) + "\n")
    path.write_text(path.read_text().replace("[weights]\n", f'[weights]\nsha256 = "{"0" * 64}"\n'))
    with pytest.raises(SpecError, match=r"host: Value error, sha256: missing; it is optional only for hf://"):
        load_spec(path)


def test_missing_file_is_named(path: Path) -> None:
    save_host_adapter(path).unlink()
    with pytest.raises(SpecError, match=r"host\.safetensors: no such file"):
        LoadedModel.load(path)


def test_other_digest_is_refused(path: Path) -> None:
    write_host_section(path, save_host_adapter(path), sha256=f'"{"0" * 64}"')
    with pytest.raises(WeightsError, match=r"host\.safetensors: sha256 [0-9a-f]{64}, expected 0{64}"):
        LoadedModel.load(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"blocks.0.attn1.to_q.lora_A.weight": (2, 23), "blocks.0.attn1.to_q.lora_B.weight": (24, 2)},
            r"change of blocks\.0\.attn1\.to_q\.weight: .*expected \[24, r\] times \[r, 24\]",
        ),
        ({"blocks.0.attn1.to_q.lora_A.weight": (2, 24)}, r"has \['down'\], expected down and up"),
        ({"blocks.7.attn1.to_q.diff": (24, 24)}, r"blocks\.7\.attn1\.to_q\.diff"),
        ({"blocks.0.attn1.to_q.hada_w1_a": (24, 2)}, r"LoHa"),
        ({"blocks.0.attn1.to_q.weight": (24, 24)}, r"holds whole weights, not an adapter"),
    ],
)
def test_file_that_does_not_fit_is_refused_with_the_tensor(
    path: Path, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    file = path.parent / "host.safetensors"
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, file)
    write_host_section(path, file)
    with pytest.raises(WeightsError, match=message):
        LoadedModel.load(path)


def test_adapter_that_exceeds_the_type_is_refused(path: Path) -> None:
    file = path.parent / "host.safetensors"
    save_file({"blocks.0.attn1.to_q.diff": torch.full((24, 24), 1e5)}, file)
    write_host_section(path, file)
    fault = (
        r"adapter host: merged, tensor blocks\.0\.attn1\.to_q\.weight holds NaN or infinity in torch\.float16"
    )
    with pytest.raises(WeightsError, match=fault):
        LoadedModel.load(path, dtype=torch.float16)
    assert LoadedModel.load(path).host is not None


def test_parameter_that_the_host_replaces_must_not_be_changed_by_another_adapter(path: Path) -> None:
    style = path.parent / "style.safetensors"
    save_file({"blocks.0.attn1.to_q.diff_b": torch.ones(24)}, style)
    path.write_text(path.read_text() + write_adapter("style", style))
    folder = path.parent / "peft"
    folder.mkdir()
    file = folder / "adapter_model.safetensors"
    names = ("lora_A.weight", (2, 24)), ("lora_B.weight", (24, 2)), ("base_layer.bias", (24,))
    save_file({f"base_model.model.blocks.0.attn1.to_q.{n}": torch.ones(s) for n, s in names}, file)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "lora_only"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    write_host_section(path, folder)
    with pytest.raises(
        WeightsError, match=r"replaces blocks\.0\.attn1\.to_q\.bias, which .* changes as well"
    ):
        LoadedModel.load(path)
