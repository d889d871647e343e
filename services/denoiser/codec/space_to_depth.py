"""Codec of small models: lossless, without a network."""

from __future__ import annotations

from torch import Tensor

from services.denoiser.codec.base import Codec


class SpaceToDepthCodec(Codec):
    """Folds blocks of `temporal` frames by `spatial` x `spatial` pixels into channels; exactly invertible.

    Latents are pixels times `scale`. The smaller it is, the later in the schedule the latents rise above the
    noise, as the scale of a VAE's latents decides in other models.
    """

    def __init__(self, temporal: int, spatial: int, scale: float = 1.0) -> None:
        if temporal < 1 or spatial < 1:
            raise ValueError(f"codec factors must be at least 1, not temporal {temporal}, spatial {spatial}")
        if not 0.01 <= scale <= 100:
            raise ValueError(f"codec scale must be 0.01 to 100, not {scale}")
        self.scale = scale
        super().__init__(
            latent_channels=3 * temporal * spatial * spatial,
            temporal_factor=temporal,
            spatial_factor=spatial,
            causal=False,
            id=f"space-to-depth-{temporal}x{spatial}x{spatial}" + (f"-scale-{scale:g}" if scale != 1 else ""),
        )

    def encode(self, video: Tensor) -> Tensor:
        p, s = self.temporal_factor, self.spatial_factor
        if video.ndim != 4 or video.shape[0] != 3:
            raise ValueError(f"video: must be [3, frames, height, width], not {list(video.shape)}")
        _, t, h, w = self.latent_shape(*video.shape[1:])
        x = video.reshape(3, t, p, h, s, w, s)
        return self.scale * x.permute(0, 2, 4, 6, 1, 3, 5).reshape(-1, t, h, w)

    def decode(self, latents: Tensor) -> Tensor:
        p, s = self.temporal_factor, self.spatial_factor
        if latents.ndim != 4 or latents.shape[0] != self.latent_channels:
            raise ValueError(f"latents: must be [{self.latent_channels}, T, H, W], not {list(latents.shape)}")
        _, t, h, w = latents.shape
        x = latents.reshape(3, p, s, s, t, h, w)
        return x.permute(0, 4, 1, 5, 2, 6, 3).reshape(3, t * p, h * s, w * s) / self.scale
