"""Verifies pictures of estimates: they show the middle frame of the whole video, within their bounds."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from chorus_rpc.limits import MAX_PREVIEW_BYTES, MAX_PREVIEW_PIXELS
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from services.denoiser.codec import Codec, SpaceToDepthCodec
from services.denoiser.codec.mp4 import to_frames
from services.denoiser.codec.preview import encode_preview


class CausalCodec(Codec):
    """Decodes the first latent frame to one frame, and each further one to two; a latent is a grey level."""

    def __init__(self) -> None:
        super().__init__(latent_channels=1, temporal_factor=2, spatial_factor=2, causal=True, id="causal")
        self.decoded: list[tuple[int, ...]] = []

    def encode(self, video: Tensor) -> Tensor:
        raise AssertionError("a preview encodes nothing")

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded.append(tuple(latents.shape))
        frames = torch.cat([latents[:, :1], latents[:, 1:].repeat_interleave(2, dim=1)], dim=1)
        return frames.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).expand(3, -1, -1, -1)


def read(data: bytes) -> NDArray[np.int64]:
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "JPEG"
        return np.asarray(picture.convert("RGB")).astype(np.int64)


@pytest.mark.parametrize("cells", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("temporal", [1, 4])
def test_picture_is_the_middle_frame_of_the_whole_video(temporal: int, cells: int) -> None:
    codec = SpaceToDepthCodec(temporal, 2, 0.4)
    levels = torch.linspace(-1, 1, temporal * cells).view(1, -1, 1, 1)
    latents = codec.encode(levels.expand(3, -1, 64, 64).contiguous())
    frames = to_frames(codec.decode(latents))
    shown = read(encode_preview(codec, latents).data)
    assert np.abs(shown - frames[len(frames) // 2].astype(int)).max() <= 3


def test_causal_codec_decodes_one_latent_frame() -> None:
    codec = CausalCodec()
    latents = torch.linspace(-1, 1, 5).view(1, 5, 1, 1).expand(1, 5, 8, 8)
    shown = read(encode_preview(codec, latents).data)
    assert np.abs(shown - 127).max() <= 3
    assert codec.decoded == [(1, 1, 8, 8)]


@pytest.mark.parametrize(
    ("height", "width", "upscale"), [(64, 64, 6), (256, 512, 1), (8, 8, 1), (600, 20, 2)]
)
def test_noise_of_any_size_stays_within_the_bounds(height: int, width: int, upscale: int) -> None:
    codec = SpaceToDepthCodec(1, 2)
    noise = torch.randn(3, 1, height, width, generator=torch.Generator().manual_seed(0))
    picture = encode_preview(codec, codec.encode(noise), upscale)
    assert len(picture.data) <= MAX_PREVIEW_BYTES
    assert max(picture.height, picture.width) == min(MAX_PREVIEW_PIXELS, upscale * max(height, width))
    assert read(picture.data).shape == (picture.height, picture.width, 3)


def test_estimate_that_diverged_has_no_picture() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode_preview(SpaceToDepthCodec(1, 2), torch.full((12, 1, 4, 4), float("inf")))
