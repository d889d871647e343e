"""Decodes and encodes mp4 files. Needs the extra `explain`."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TypeAlias

import av
import numpy as np
from numpy.typing import NDArray

Frames: TypeAlias = NDArray[np.uint8]  # [T, H, W, 3]


def decode_mp4(mp4: bytes) -> Frames:
    """Returns the frames of an mp4, uint8 [T, H, W, 3]."""
    with av.open(io.BytesIO(mp4), "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def encode_mp4(frames: Frames, fps: float) -> bytes:
    """Encodes frames, uint8 [T, H, W, 3] with H and W even, as an mp4 (H.264)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
