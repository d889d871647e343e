"""Encodes H.264 mp4 files in memory."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from chorus_rpc.limits import MAX_FPS, MIN_FPS
from numpy.typing import NDArray
from torch import Tensor

MEDIA_TYPE = "video/mp4"


def to_frames(video: Tensor, upscale: int = 1) -> NDArray[np.uint8]:
    """Converts RGB [3, T, H, W] in [-1, 1] to frames uint8 [T, H*upscale, W*upscale, 3].

    Pixels are repeated; values outside the range are clipped. Raises ValueError for another shape, NaN or
    infinity.
    """
    if video.ndim != 4 or video.shape[0] != 3 or 0 in video.shape:
        raise ValueError(f"video: must be [3, frames, height, width], not {list(video.shape)}")
    if upscale < 1:
        raise ValueError(f"upscale: must be at least 1, not {upscale}")
    if not video.isfinite().all():
        raise ValueError("video: holds NaN or infinity; the model diverged")
    scaled = ((video.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    frames = scaled.permute(1, 2, 3, 0).cpu().numpy()
    return frames.repeat(upscale, axis=1).repeat(upscale, axis=2)


def encode_mp4(frames: NDArray[np.uint8], fps: float, upscale: int = 1) -> bytes:
    """Encodes frames uint8 [T, H, W, 3] as an mp4 file (H.264, yuv420p) that plays while it loads.

    Colours are BT.709 in the limited range at every size. The stream and the file say so, because a player
    that has to guess takes BT.601 or BT.709 by the size of the video.

    Args:
        fps: Frames per second, MIN_FPS to MAX_FPS.
        upscale: Number of times that each pixel is repeated along rows and columns.

    Raises ValueError for other frames, and if the enlarged height or width is odd.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"frames: must be uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    height, width = upscale * frames.shape[1], upscale * frames.shape[2]
    if height % 2 or width % 2:
        raise ValueError(f"frames: H.264 in yuv420p needs even height and width, not {height} x {width}")
    if not MIN_FPS <= fps <= MAX_FPS:
        raise ValueError(f"fps: must be {MIN_FPS:g} to {MAX_FPS:g}, not {fps}")
    buffer = io.BytesIO()
    # The index goes first, into space reserved for it: +faststart would need a real file to read back.
    reserved = {"moov_size": str(4096 + 64 * len(frames))}
    with av.open(buffer, mode="w", format="mp4", options=reserved) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # crf fixes the quality for every preset; the fastest preset makes files a third larger in a fraction
        # of the time, which is latency of the request.
        stream.options = {"crf": "18", "preset": "ultrafast"}
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_primaries = ColorPrimaries.BT709
        stream.codec_context.color_trc = ColorTrc.BT709
        stream.codec_context.color_range = ColorRange.MPEG
        stream.thread_count = 1  # the bytes do not depend on the machine's cores
        converter = VideoReformatter()  # one for all frames: creating one takes longer than using it
        for frame in frames:
            # Enlarged during the conversion, so that each pixel keeps its own colour.
            picture = converter.reformat(
                av.VideoFrame.from_ndarray(frame, format="rgb24"),
                width,
                height,
                "yuv420p",
                interpolation=Interpolation.POINT,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                dst_color_primaries=ColorPrimaries.BT709,
                dst_color_trc=ColorTrc.BT709,
                threads=1,  # more cost more to wake than they save
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()
