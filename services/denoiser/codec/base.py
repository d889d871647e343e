"""Interface of codecs, and the shape of their latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from services.contract.identity import latent_shape


@dataclass(frozen=True)
class Geometry:
    """Sizes by which a codec folds a video.

    Attributes:
        temporal_factor: Frames per latent frame.
        spatial_factor: Pixels per latent cell, along height and width.
        causal: Whether the first frame is encoded separately.
    """

    latent_channels: int
    temporal_factor: int
    spatial_factor: int
    causal: bool

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns (C, T, H, W) of the latents of a video. Raises ValueError for a size that does not fold."""
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


@dataclass(frozen=True, eq=False)
class Codec(Geometry, ABC):
    """Maps videos to latents and back.

    Attributes:
        id: Part of the identity of latents: latents of different ids are not interchangeable.
    """

    id: str

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """Encodes RGB [3, frames, height, width] in [-1, 1] to latents [C, T, H, W]."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents [C, T, H, W] to RGB [3, frames, height, width], about [-1, 1]."""
