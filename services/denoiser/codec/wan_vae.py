"""Wan's causal video autoencoder: diffusers' `AutoencoderKLWan`, checked and normalised here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from chorus_rpc.file_kinds import describe_folder
from torch import Tensor

from services.denoiser.checkpoint.config import read_config
from services.denoiser.checkpoint.weights import check_weights, load_weights, verify_digest
from services.denoiser.codec.base import Codec, Geometry


def read_geometry(path: Path) -> Geometry:
    """Reads the geometry of an autoencoder from its `config.json`. Raises ValueError naming file and key."""
    config = read_config(path)
    if (kind := config.get("_class_name")) != "AutoencoderKLWan":
        found = describe_folder(path.parent)
        hint = f"; {path.parent} {found}" if found else ""
        raise ValueError(f"{path}: _class_name: must be AutoencoderKLWan, not {kind!r}{hint}")
    channels = config.get("z_dim", 16)
    for key in ("latents_mean", "latents_std"):
        if len(config.get(key, ())) != channels:
            raise ValueError(f"{path}: {key}: must hold z_dim = {channels} values")
    # The config of Wan2.1 does not contain the factors.
    return Geometry(
        latent_channels=channels,
        temporal_factor=config.get("scale_factor_temporal", 4),
        spatial_factor=config.get("scale_factor_spatial", 8),
        causal=True,
    )


class WanVaeCodec(Codec):
    """Codec of Wan. Latents are (z - mean) / std by channel, as in Wan's training; computed in float32.

    The id holds a digest of the weights and of the config, because other mean values give other latents.
    """

    def __init__(self, network: Any, geometry: Geometry, config: Mapping[str, Any], digest: str) -> None:
        meaning = json.dumps([digest, {k: v for k, v in config.items() if k[0] != "_"}], sort_keys=True)
        super().__init__(**vars(geometry), id=f"wan-vae@{hashlib.sha256(meaning.encode()).hexdigest()[:16]}")
        self._network = network
        device = next(network.parameters()).device
        self._mean, self._std = (
            torch.tensor(config[key], dtype=torch.float32, device=device).view(1, -1, 1, 1, 1)
            for key in ("latents_mean", "latents_std")
        )

    @classmethod
    def load(
        cls,
        weights: Path,
        config: Path,
        *,
        sha256: str | None = None,
        tile: int = 0,
        device: str | torch.device = "cpu",
    ) -> WanVaeCodec:
        """Loads weights as diffusers saves them. Raises WeightsError, or ValueError for the config.

        Args:
            tile: Side of the tiles in which larger videos are decoded, in pixels. Tiles overlap by a quarter
                and are blended: less memory, nearly the same video. 0 decodes whole frames.
        """
        # Slow to import, and only models with this codec need it.
        from diffusers import AutoencoderKLWan

        geometry, settings = read_geometry(config), read_config(config)
        autoencoder: Any = AutoencoderKLWan
        with torch.device("meta"):
            network = autoencoder.from_config(settings)
        expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
        check_weights(weights, expected)  # before the digest, which takes longer and is less specific
        digest = verify_digest(weights, sha256)
        network.load_state_dict(load_weights(weights, expected, device=device), assign=True)
        network.eval().requires_grad_(False)
        if tile:
            stride = tile * 3 // 4 // geometry.spatial_factor * geometry.spatial_factor
            network.enable_tiling(tile, tile, stride, stride)
        return cls(network, geometry, settings, digest)

    @torch.inference_mode()
    def encode(self, video: Tensor) -> Tensor:
        if video.ndim != 4 or video.shape[0] != 3:
            raise ValueError(f"video: must be [3, frames, height, width], not {list(video.shape)}")
        self.latent_shape(*video.shape[1:])
        z = self._network.encode(video[None].to(self._mean)).latent_dist.mode()
        latents: Tensor = ((z - self._mean) / self._std)[0]
        return latents

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        if latents.ndim != 4 or latents.shape[0] != self.latent_channels:
            raise ValueError(f"latents: must be [{self.latent_channels}, T, H, W], not {list(latents.shape)}")
        z = latents[None].to(self._mean) * self._std + self._mean
        video: Tensor = self._network.decode(z, return_dict=False)[0][0]
        return video
