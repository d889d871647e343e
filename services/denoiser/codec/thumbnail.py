"""Encodes thumbnails: one frame of a video as a small JPEG picture."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from chorus_rpc.limits import MAX_THUMBNAIL_BYTES, MAX_THUMBNAIL_PIXELS
from numpy.typing import NDArray

THUMBNAIL_MEDIA_TYPE = "image/jpeg"
# Quantizers of the encoder, from good quality to the smallest file.
_QUANTIZERS = (3, 8, 31)


@dataclass(frozen=True)
class Thumbnail:
    """An encoded picture.

    Attributes:
        height, width: Size in pixels.
    """

    data: bytes
    height: int
    width: int


def encode_thumbnail(
    frames: NDArray[np.uint8],
    upscale: int = 1,
    *,
    max_pixels: int = MAX_THUMBNAIL_PIXELS,
    max_bytes: int = MAX_THUMBNAIL_BYTES,
) -> Thumbnail:
    """Encodes the middle frame as JPEG, as large as in the video or `max_pixels` high or wide.

    Args:
        frames: Frames uint8 [T, H, W, 3].
        upscale: Number of times that each pixel is repeated along rows and columns in the video.
        max_pixels: Upper bound on height and width.
        max_bytes: Upper bound on the size of the file.

    Raises ValueError if the picture exceeds `max_bytes` at every quality, or for other frames.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"frames: must be uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    height, width = choose_size(upscale * frames.shape[1], upscale * frames.shape[2], max_pixels)
    enlarged = height >= frames.shape[1]
    picture = av.VideoFrame.from_ndarray(frames[len(frames) // 2], format="rgb24").reformat(
        width,
        height,
        "yuvj420p",
        # Enlarged pixels stay squares, as in the video.
        interpolation=Interpolation.POINT if enlarged else Interpolation.AREA,
        dst_colorspace=Colorspace.ITU601,  # JFIF has no other
        dst_color_range=ColorRange.JPEG,
    )
    for quantizer in _QUANTIZERS:
        data = _encode(picture, quantizer)
        if len(data) <= max_bytes:
            return Thumbnail(data, height, width)
    raise ValueError(f"the picture has {len(data)} bytes; the bound is {max_bytes}")


def choose_size(height: int, width: int, max_pixels: int = MAX_THUMBNAIL_PIXELS) -> tuple[int, int]:
    """Returns height and width of the thumbnail of a video: its own, or smaller ones of its proportions."""
    scale = min(1.0, max_pixels / max(height, width))
    return max(1, round(scale * height)), max(1, round(scale * width))


def _encode(picture: av.VideoFrame, quantizer: int) -> bytes:
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuvj420p"
    encoder.time_base = Fraction(1, 1)
    encoder.thread_count = 1
    encoder.qmin = encoder.qmax = quantizer
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])
