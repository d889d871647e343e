"""Codecs: RGB video <-> latents."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from services.common.identity import latent_shape


class Codec(ABC):
    """Maps videos to latents and back.

    id is part of the identity of latents: another id means latents of another meaning.
    """

    id: str
    latent_channels: int
    temporal_factor: int  # frames a latent frame
    spatial_factor: int  # pixels a latent pixel, along height and width
    causal: bool  # the first frame is a latent frame of its own

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, T, H, W) of the latents of a video. Raises ValueError where the codec cannot fold the size."""
        rest = frames - 1 if self.causal else frames
        if frames < 1 or rest % self.temporal_factor:
            rule = f"{'1 plus ' if self.causal else ''}a multiple of {self.temporal_factor}"
            raise ValueError(f"frames: must be {rule}, not {frames}")
        for name, size in (("height", height), ("width", width)):
            if size < 1 or size % self.spatial_factor:
                raise ValueError(f"{name}: must be a multiple of {self.spatial_factor}, not {size}")
        return latent_shape(
            channels=self.latent_channels,
            temporal_factor=self.temporal_factor,
            spatial_factor=self.spatial_factor,
            causal=self.causal,
            frames=frames,
            height=height,
            width=width,
        )

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """RGB [3, frames, height, width] in [-1, 1] -> latents [C, T, H, W]."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [C, T, H, W] -> RGB [3, frames, height, width], about [-1, 1]."""


class SpaceToDepthCodec(Codec):
    """Folds blocks of `temporal` frames by `spatial` x `spatial` pixels into channels; exactly invertible."""

    causal = False

    def __init__(self, temporal: int, spatial: int) -> None:
        if temporal < 1 or spatial < 1:
            raise ValueError(f"codec factors must be at least 1, not temporal {temporal}, spatial {spatial}")
        self.temporal_factor, self.spatial_factor = temporal, spatial
        self.id = f"space-to-depth-{temporal}x{spatial}x{spatial}"
        self.latent_channels = 3 * temporal * spatial * spatial

    def encode(self, video: Tensor) -> Tensor:
        p, s = self.temporal_factor, self.spatial_factor
        if video.ndim != 4 or video.shape[0] != 3:
            raise ValueError(f"video: must be [3, frames, height, width], not {list(video.shape)}")
        _, t, h, w = self.latent_shape(*video.shape[1:])
        x = video.reshape(3, t, p, h, s, w, s)
        return x.permute(0, 2, 4, 6, 1, 3, 5).reshape(-1, t, h, w)

    def decode(self, latents: Tensor) -> Tensor:
        p, s = self.temporal_factor, self.spatial_factor
        if latents.ndim != 4 or latents.shape[0] != self.latent_channels:
            raise ValueError(f"latents: must be [{self.latent_channels}, T, H, W], not {list(latents.shape)}")
        _, t, h, w = latents.shape
        x = latents.reshape(3, p, s, s, t, h, w)
        return x.permute(0, 4, 1, 5, 2, 6, 3).reshape(3, t * p, h * s, w * s)
