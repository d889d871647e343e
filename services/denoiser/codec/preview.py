"""Pictures of what a run has computed so far: the middle frame of an estimate of the clean latents."""

from __future__ import annotations

from chorus_rpc.limits import MAX_PREVIEW_BYTES, MAX_PREVIEW_PIXELS
from torch import Tensor

from services.denoiser.codec.base import Codec
from services.denoiser.codec.mp4 import to_frames
from services.denoiser.codec.thumbnail import Thumbnail, encode_thumbnail


def encode_preview(codec: Codec, latents: Tensor, upscale: int = 1) -> Thumbnail:
    """Decodes the latent frame in the middle alone, and encodes its frame as JPEG.

    A causal codec decodes a latent frame alone to one frame.

    Args:
        latents: Clean latents [C, T, H, W].
        upscale: Number of times that each pixel is repeated along rows and columns in the video.

    Raises ValueError for NaN or infinity, or if the picture exceeds MAX_PREVIEW_BYTES at every quality.
    """
    each = 1 if codec.causal else codec.temporal_factor
    middle = each * latents.shape[1] // 2
    frames = to_frames(codec.decode(latents[:, middle // each : middle // each + 1]))
    return encode_thumbnail(
        frames[middle % each :][:1], upscale, max_pixels=MAX_PREVIEW_PIXELS, max_bytes=MAX_PREVIEW_BYTES
    )
