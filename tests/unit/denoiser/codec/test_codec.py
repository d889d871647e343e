"""Tests of codecs: space-to-depth is lossless, and Wan's autoencoder matches diffusers' pipeline."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given
from hypothesis import strategies as st

from bench.checkpoints import save_wan_pipeline
from services.denoiser.checkpoint.weights import WeightsError, weights_digest
from services.denoiser.codec import SpaceToDepthCodec
from services.denoiser.codec.wan_vae import WanVaeCodec, read_geometry


@given(st.integers(1, 3), st.integers(1, 3), st.tuples(*[st.integers(1, 3)] * 3))
def test_space_to_depth_is_invertible(temporal: int, spatial: int, cells: tuple[int, int, int]) -> None:
    codec = SpaceToDepthCodec(temporal, spatial)
    video = torch.randn(3, cells[0] * temporal, cells[1] * spatial, cells[2] * spatial)
    latents = codec.encode(video)
    assert latents.shape == codec.latent_shape(*video.shape[1:]) == (3 * temporal * spatial**2, *cells)
    assert torch.equal(codec.decode(latents), video)


def test_latent_cell_holds_one_block_of_pixels() -> None:
    codec = SpaceToDepthCodec(2, 2)
    video = torch.randn(3, 4, 6, 8)
    changed = video.clone()
    changed[:, 2:4, 2:4, 6:8] += 1
    difference = (codec.encode(changed) - codec.encode(video)).abs().sum(0)
    assert difference[1, 1, 3] > 0
    assert torch.count_nonzero(difference) == 1


@pytest.mark.parametrize(
    ("size", "field"),
    [((7, 32, 32), "frames"), ((8, 33, 32), "height"), ((8, 32, 1), "width"), ((0, 2, 2), "frames")],
)
def test_sizes_that_do_not_fold_are_rejected_by_field(size: tuple[int, int, int], field: str) -> None:
    codec = SpaceToDepthCodec(2, 2)
    with pytest.raises(ValueError, match=f"^{field}: must be a multiple of 2"):
        codec.latent_shape(*size)


def test_tensors_of_other_shapes_are_rejected() -> None:
    codec = SpaceToDepthCodec(2, 2)
    with pytest.raises(ValueError, match="latents"):
        codec.decode(torch.zeros(16, 2, 4, 4))
    with pytest.raises(ValueError, match="video"):
        codec.encode(torch.zeros(4, 8, 32, 32))
    with pytest.raises(ValueError, match="at least 1"):
        SpaceToDepthCodec(0, 2)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wan_pipeline(tmp_path_factory.mktemp("wan")) / "vae"


def load(folder: Path, **options: Any) -> WanVaeCodec:
    return WanVaeCodec.load(folder, folder / "config.json", **options)


@torch.no_grad()
def test_wan_latents_are_normalised_as_in_training(vae: Path) -> None:
    autoencoder: Any = AutoencoderKLWan
    network = autoencoder.from_pretrained(vae)
    codec, video = load(vae), torch.rand(3, 5, 16, 32) * 2 - 1
    latents = codec.encode(video)
    assert latents.shape == codec.latent_shape(5, 16, 32) == (16, 2, 2, 4)
    mean, std = (torch.tensor(network.config[f"latents_{k}"]).view(1, 16, 1, 1, 1) for k in ("mean", "std"))
    z = network.encode(video[None]).latent_dist.mode()
    torch.testing.assert_close(latents[None], (z - mean) / std)
    torch.testing.assert_close(codec.decode(latents)[None], network.decode(z).sample, rtol=1e-4, atol=1e-5)
    assert codec.decode(latents).shape == video.shape


def test_codec_id_depends_on_weights_and_config(vae: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(vae, tmp_path / "vae")
    assert load(copy).id == load(vae).id
    assert load(vae).id.startswith("wan-vae@")
    config = json.loads((vae / "config.json").read_text())
    config["latents_mean"][3] += 0.5
    (copy / "config.json").write_text(json.dumps(config))
    assert load(copy).id != load(vae).id
    (copy / "config.json").write_text((vae / "config.json").read_text() + "\n")
    assert load(copy).id == load(vae).id
    [file] = copy.glob("*.safetensors")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert load(copy).id != load(vae).id


def test_large_video_is_decoded_in_tiles(vae: Path) -> None:
    latents = torch.randn(16, 1, 7, 4, generator=torch.Generator().manual_seed(0))
    whole, tiled = load(vae).decode(latents), load(vae, tile=32).decode(latents)
    assert tiled.shape == whole.shape == (3, 1, 56, 32)
    assert not torch.equal(tiled, whole)
    # A tile differs from the whole only where it is blended, and by the content beyond its border.
    assert (tiled - whole).norm() / whole.norm() < 0.5
    assert torch.equal(load(vae, tile=64).decode(latents), whole)


def test_another_autoencoder_is_rejected(vae: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not the weights"):
        load(vae, sha256="0" * 64)
    assert load(vae, sha256=weights_digest(vae)).latent_channels == 16
    config = json.loads((vae / "config.json").read_text())
    path = tmp_path / "config.json"
    for change, message in (
        ({"_class_name": "AutoencoderKL"}, "must be AutoencoderKLWan, not 'AutoencoderKL'"),
        ({"latents_std": [1.0]}, "latents_std: must hold z_dim = 16 values"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            read_geometry(path)
    with pytest.raises(ValueError, match=r"none\.json: cannot be read"):
        read_geometry(tmp_path / "none.json")
    codec = load(vae)
    with pytest.raises(ValueError, match="latents: must be"):
        codec.decode(torch.zeros(12, 2, 4, 4))
    with pytest.raises(ValueError, match="video: must be"):
        codec.encode(torch.zeros(1, 5, 32, 32))
    with pytest.raises(ValueError, match="frames: must be 1 plus a multiple of 4"):
        codec.encode(torch.zeros(3, 4, 32, 32))
