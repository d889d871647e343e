"""Verifies that weights that are not finite, and models that diverge, are found before they serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.checkpoints import save_wan_pipeline
from services.denoiser.checkpoint.weights import WeightsError, weights_digest
from services.denoiser.codec.wan_vae import WanVaeCodec
from services.denoiser.device_thread import DeviceThread
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.spec import SpecError
from services.denoiser.model_registry import load_models
from services.denoiser.settings import DenoiserSettings
from tests.tiny_model import save_tiny_model, write_host_section

Weights = dict[str, Tensor]


def save_changed_model(folder: Path, change: Callable[[Weights], object], dtype: str = "float32") -> Path:
    """Writes a tiny model whose weights `change` has altered."""
    path, file = save_tiny_model(folder), folder / "weights.safetensors"
    before, weights = weights_digest(file), load_file(file)
    change(weights)
    save_file(weights, file)
    content = path.read_text().replace(before, weights_digest(file))
    path.write_text(content.replace("freq_dim = 16", f'freq_dim = 16\ndtype = "{dtype}"'))
    return path


def spoil_one(value: float, name: str = "blocks.0.attn1.to_q.weight") -> Callable[[Weights], object]:
    return lambda weights: weights[name][0].fill_(value)


@pytest.mark.fault("diverging-model")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "name", ["blocks.0.attn1.to_q.weight", "proj_out.bias", "blocks.0.scale_shift_table"]
)
def test_weight_that_is_not_finite_is_named(tmp_path: Path, name: str, value: float) -> None:
    path = save_changed_model(tmp_path, spoil_one(value, name))
    with pytest.raises(WeightsError, match=rf"weights\.safetensors: tensor {name}: holds NaN or infinity"):
        LoadedModel.load(path)


@pytest.mark.fault("diverging-model")
def test_weight_beyond_the_type_of_the_computation_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = save_changed_model(tmp_path, spoil_one(1e5), "float16")
    expected = r"tensor blocks\.0\.attn1\.to_q\.weight: exceeds the range of float16: .*bfloat16 or float32"
    with pytest.raises(WeightsError, match=expected):
        LoadedModel.load(path)
    assert LoadedModel.load(path, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.fault("diverging-model")
@pytest.mark.parametrize("scale", [torch.nan, 3e38])
def test_adapter_that_spoils_a_weight_is_named(tmp_path: Path, scale: float) -> None:
    path, file = save_tiny_model(tmp_path), tmp_path / "style.safetensors"
    save_file({"diffusion_model.head.head.diff_b": torch.full((48,), scale)}, file)
    digest = weights_digest(file)
    adapter = f'[[adapters]]\nid = "style"\nfile = "style.safetensors"\nscale = 10.0\nsha256 = "{digest}"\n'
    path.write_text(path.read_text() + adapter)
    with pytest.raises(WeightsError, match=r"adapter style: merged, tensor proj_out\.bias holds NaN or inf"):
        LoadedModel.load(path)


@pytest.mark.fault("diverging-model")
def test_autoencoder_that_is_not_finite_is_named(tmp_path: Path) -> None:
    folder = save_wan_pipeline(tmp_path / "wan") / "vae"
    [file] = folder.glob("*.safetensors")
    weights = load_file(file)
    weights["decoder.conv_in.weight"][0, 0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"tensor decoder\.conv_in\.weight: holds NaN or infinity"):
        WanVaeCodec.load(folder, folder / "config.json")


async def start(path: Path) -> None:
    device_thread = DeviceThread(1)
    try:
        settings = DenoiserSettings.model_validate({"models": [path]})
        await (await load_models(settings, device_thread, Event())).close()
    finally:
        await device_thread.close()


@pytest.mark.fault("diverging-model")
async def test_model_that_overflows_in_float16_is_refused_at_start(tmp_path: Path) -> None:
    def enlarge(weights: Weights) -> None:
        weights["patch_embedding.weight"] *= 400_000

    path = save_changed_model(tmp_path, enlarge, "float16")
    with pytest.raises(SpecError, match=r"model\.toml: .*float16.* use bfloat16 or float32"):
        await start(path)
    path.write_text(path.read_text().replace("float16", "float32"))
    await start(path)


@pytest.mark.fault("diverging-model")
async def test_host_adapter_that_diverges_is_refused_at_start(tmp_path: Path) -> None:
    path, file = save_tiny_model(tmp_path), tmp_path / "host.safetensors"
    save_file({"diffusion_model.blocks.0.ffn.2.diff": torch.full((24, 32), 3e38)}, file)
    write_host_section(path, file)
    with pytest.raises(SpecError, match=r"model\.toml: tiny \+ host: a step from noise gave NaN or infinity"):
        await start(path)
