"""Decodes and encodes mp4 files. Needs the extra `explain`."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TypeAlias

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from numpy.typing import NDArray

Frames: TypeAlias = NDArray[np.uint8]  # [T, H, W, 3]

# The default conversion to RGB trades up to 3 of 255 levels for speed.
_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def decode_mp4(mp4: bytes) -> Frames:
    """Returns the frames of an mp4, uint8 [T, H, W, 3], in the colours that its tags define."""
    with av.open(io.BytesIO(mp4), "r") as container:
        return np.stack(
            [frame.to_ndarray(format="rgb24", interpolation=_EXACT) for frame in container.decode(video=0)]
        )


def encode_mp4(frames: Frames, fps: float) -> bytes:
    """Encodes frames, uint8 [T, H, W, 3] with H and W even, as an mp4 (H.264) with tagged BT.709 colours."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_primaries = ColorPrimaries.BT709
        stream.codec_context.color_trc = ColorTrc.BT709
        stream.codec_context.color_range = ColorRange.MPEG
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                dst_color_primaries=ColorPrimaries.BT709,
                dst_color_trc=ColorTrc.BT709,
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()
