"""Pixels of two videos of the same request: how far one is from the other, and where it shows seams.

Videos are float32 [T, H, W, 3] in 0..255.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Final, TypeAlias

import av
import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

Video: TypeAlias = NDArray[np.float32]

PSNR_CEILING: Final = 100.0
_PEAK: Final = 255.0
_SSIM_WINDOW: Final = 7  # scikit-image's default, and that of Wang et al. 2004 without a Gaussian


def decode(mp4: bytes, factor: int = 1) -> Video:
    """The frames of an mp4, each square of `factor` pixels averaged into one.

    Raises ValueError when the frames' sides are no multiples of it.
    """
    with av.open(io.BytesIO(mp4), "r") as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    count, height, width, _ = frames.shape
    if height % factor or width % factor:
        raise ValueError(f"factor: {height} x {width} pixels are no multiples of {factor}")
    squares = frames.reshape(count, height // factor, factor, width // factor, factor, 3)
    video: Video = squares.mean(axis=(2, 4), dtype=np.float32)
    return video


def encode(frames: NDArray[np.uint8], fps: float) -> bytes:
    """Frames uint8 [T, H, W, 3], H and W even -> an mp4 (H.264)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def psnr(video: Video, reference: Video) -> float:
    """Peak signal-to-noise ratio in dB over the whole video; PSNR_CEILING at most, also for equal ones."""
    if np.array_equal(video, reference):
        return PSNR_CEILING
    decibels = peak_signal_noise_ratio(reference, video, data_range=_PEAK)  # type: ignore[no-untyped-call]
    return min(float(decibels), PSNR_CEILING)


def ssim(video: Video, reference: Video) -> float:
    """Structural similarity, the mean over frames; 1 for equal videos. Frames of 3 pixels a side at least."""
    side = min(_SSIM_WINDOW, *reference.shape[1:3])
    window = side - (side + 1) % 2  # odd
    scores = [
        structural_similarity(one, other, channel_axis=-1, data_range=_PEAK, win_size=window)  # type: ignore[no-untyped-call]
        for one, other in zip(reference, video, strict=True)
    ]
    return float(np.mean(scores))


def seam_score(video: Video, reference: Video, mask: NDArray[np.bool_]) -> float | None:
    """How much stronger than in the reference the jump across the edge of a region is, in levels of 0..255.

    The jump between two neighbouring pixels of a frame, one inside the region and one outside, counts by what
    it exceeds the jumps just before and behind it, so that slopes and textures that go on across the edge are
    none. 0 where the edge is no sharper than in the reference; None where the region has no edge.

    Args:
        mask: the region, [T, H, W].
    """
    excess = np.concatenate(
        [_at_edges(video, mask, axis) - _at_edges(reference, mask, axis) for axis in (1, 2)]
    )
    return float(excess.mean()) if len(excess) else None


def token_grid(video: Video, side: int) -> NDArray[np.bool_]:
    """A mask [T, H, W] whose edges are those of all tokens of `side` x `side` pixels: a chessboard."""
    count, height, width, _ = video.shape
    rows, columns = np.arange(height) // side, np.arange(width) // side
    return np.broadcast_to((rows[:, None] + columns) % 2 == 1, (count, height, width))


def _at_edges(video: Video, mask: NDArray[np.bool_], axis: int) -> NDArray[np.float32]:
    """The jumps along an axis across edges, [n], less the mean of the jumps beside that cross none.

    Edges without such a neighbour are left out: those of regions one pixel wide.
    """
    jumps = np.moveaxis(np.abs(np.diff(video, axis=axis)).mean(axis=-1), axis, -1)  # [.., pairs]
    edge = np.moveaxis(mask, axis, -1)
    edge = edge[..., 1:] != edge[..., :-1]
    around = [(0, 0)] * (jumps.ndim - 1) + [(1, 1)]
    quiet = np.pad(np.where(edge, 0, jumps), around)
    count = np.pad((~edge).astype(np.float32), around)
    beside, neighbours = quiet[..., :-2] + quiet[..., 2:], count[..., :-2] + count[..., 2:]
    used = edge & (neighbours > 0)
    excess: NDArray[np.float32] = jumps[used] - beside[used] / neighbours[used]
    return excess
