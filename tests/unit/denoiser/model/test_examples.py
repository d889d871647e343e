"""Tests of the example model files against the released configurations, without weights."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from services.denoiser.model.spec import SpecError, load_spec
from services.denoiser.network.wan import WanConfig
from tests.processes import ROOT

EXAMPLES = sorted((ROOT / "examples" / "models").glob("*.toml"))
SIZES = {"1.3b": (12, 8960, 30), "14b": (40, 13824, 40)}  # heads, ffn_dim, layers
VAE = {"_class_name": "AutoencoderKLWan", "z_dim": 16, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}


def released(size: str) -> dict[str, object]:
    heads, ffn_dim, layers = SIZES[size]
    return {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": heads,
        "attention_head_dim": 128,
        "ffn_dim": ffn_dim,
        "num_layers": layers,
        "patch_size": [1, 2, 2],
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "eps": 1e-6,
    }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def fill(cache: Path, example: Path) -> None:
    """Fills the hub's cache with the configs that the example names, without weights."""
    size = "1.3b" if "1.3b" in example.name else "14b"
    tables = tomllib.loads(example.read_text())
    for location in (tables["codec"]["file"], tables["transformer"].get("sizes", "")):
        if location:
            name, _, rest = location.removeprefix("hf://").partition("@")
            commit, _, path = rest.partition("/")
            folder = cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit / path.split("/")[0]
            folder.mkdir(parents=True, exist_ok=True)
            config = VAE if folder.name == "vae" else released(size)
            (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: str(path.stem))
def test_example_describes_its_model(cache: Path, example: Path) -> None:
    fill(cache, example)
    spec = load_spec(example)
    heads, ffn_dim, layers = SIZES["1.3b" if "1.3b" in example.name else "14b"]
    assert spec.id == example.stem
    assert spec.transformer.config() == WanConfig(heads=heads, ffn_dim=ffn_dim, layers=layers)
    assert spec.codec.geometry.latent_shape(81, 480, 832) == (16, 21, 60, 104)
    if "dmd" in example.name:
        assert (spec.schedule.sampler, spec.schedule.sigmas) == ("renoise", (1.0, 0.757, 0.522, 0.0))
    else:
        assert spec.schedule.sampler == "euler"
        assert spec.schedule.sigmas == pytest.approx((1.0, 0.9375, 0.8333, 0.625, 0.0), abs=1e-4)
    assert bool(spec.adapters) == ("lora" in example.name)


def test_missing_download_is_named_with_its_command(cache: Path) -> None:
    with pytest.raises(
        SpecError, match=r"toml: .*hf download Wan-AI/Wan2\.1-T2V-1\.3B-Diffusers --revision 0fad"
    ):
        load_spec(ROOT / "examples" / "models" / "wan2.1-t2v-1.3b.toml")


def test_four_examples_exist() -> None:
    assert len(EXAMPLES) == 4
