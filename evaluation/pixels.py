"""Pixel metrics of two videos of the same request: distance, structural similarity, and seams at regions.

Videos are float32 [T, H, W, 3] in 0..255.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from chorus_cli.explain.video import decode_mp4
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

Video: TypeAlias = NDArray[np.float32]

PSNR_CEILING: Final = 100.0
_PEAK: Final = 255.0
_SSIM_WINDOW: Final = 7  # scikit-image's default, and that of Wang et al. 2004 without a Gaussian


def decode(mp4: bytes, factor: int = 1) -> Video:
    """Returns the frames of an mp4, each square of `factor` x `factor` pixels averaged into one.

    Raises ValueError when height or width is not a multiple of `factor`.
    """
    frames = decode_mp4(mp4)
    count, height, width, _ = frames.shape
    if height % factor or width % factor:
        raise ValueError(f"factor: {height} x {width} pixels are not multiples of {factor}")
    squares = frames.reshape(count, height // factor, factor, width // factor, factor, 3)
    video: Video = squares.mean(axis=(2, 4), dtype=np.float32)
    return video


def psnr(video: Video, reference: Video) -> float:
    """Returns the peak signal-to-noise ratio of the whole video in dB, at most PSNR_CEILING."""
    if np.array_equal(video, reference):
        return PSNR_CEILING
    decibels = peak_signal_noise_ratio(reference, video, data_range=_PEAK)  # type: ignore[no-untyped-call]
    return min(float(decibels), PSNR_CEILING)


def ssim(video: Video, reference: Video) -> float:
    """Returns the mean structural similarity of the frames; 1 for equal videos. Frames are at least 3 x 3."""
    side = min(_SSIM_WINDOW, *reference.shape[1:3])
    window = side - (side + 1) % 2  # odd
    scores = [
        structural_similarity(one, other, channel_axis=-1, data_range=_PEAK, win_size=window)  # type: ignore[no-untyped-call]
        for one, other in zip(reference, video, strict=True)
    ]
    return float(np.mean(scores))


def seam_score(video: Video, reference: Video, mask: NDArray[np.bool_]) -> float | None:
    """Returns the excess of the jump across a region's edge over that of the reference, in levels of 0..255.

    The jump between two neighbouring pixels of a frame, one inside the region and one outside, is reduced by
    the jumps just before and behind it, so that slopes and textures that continue across the edge do not
    count. 0 if the edge is no sharper than in the reference; None if the region has no edge.

    Args:
        mask: region, [T, H, W].
    """
    excess = np.concatenate(
        [_at_edges(video, mask, axis) - _at_edges(reference, mask, axis) for axis in (1, 2)]
    )
    return float(excess.mean()) if len(excess) else None


def token_grid(video: Video, side: int) -> NDArray[np.bool_]:
    """Returns a chessboard mask [T, H, W] whose edges are those of all tokens of `side` x `side` pixels."""
    count, height, width, _ = video.shape
    rows, columns = np.arange(height) // side, np.arange(width) // side
    return np.broadcast_to((rows[:, None] + columns) % 2 == 1, (count, height, width))


def _at_edges(video: Video, mask: NDArray[np.bool_], axis: int) -> NDArray[np.float32]:
    """Returns the jumps across edges along an axis, [n], less the mean of the adjacent jumps inside a side.

    Edges without such a neighbour, those of regions one pixel wide, are skipped.
    """
    jumps = np.moveaxis(np.abs(np.diff(video, axis=axis)).mean(axis=-1), axis, -1)  # [.., pairs]
    edge = np.moveaxis(mask, axis, -1)
    edge = edge[..., 1:] != edge[..., :-1]
    around = [(0, 0)] * (jumps.ndim - 1) + [(1, 1)]
    quiet = np.pad(np.where(edge, 0, jumps), around)
    count = np.pad((~edge).astype(np.float32), around)
    adjacent, neighbours = quiet[..., :-2] + quiet[..., 2:], count[..., :-2] + count[..., 2:]
    used = edge & (neighbours > 0)
    excess: NDArray[np.float32] = jumps[used] - adjacent[used] / neighbours[used]
    return excess
