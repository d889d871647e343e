"""Verifies distances between two videos, and seams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from evaluation.pixels import PSNR_CEILING, Video, decode, psnr, seam_score, ssim, token_grid
from services.denoiser.codec.mp4 import encode_mp4

SHAPE = (1, 12, 12, 3)
videos = arrays(np.float32, SHAPE, elements=st.floats(0, 255, width=32))
masks = arrays(np.bool_, SHAPE[:3])


def flat(level: float) -> Video:
    return np.full(SHAPE, level, np.float32)


def square() -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE[:3], np.bool_)
    mask[:, 4:8, 4:8] = True
    return mask


@settings(max_examples=20)
@given(videos)
def test_equal_videos_have_the_best_scores(video: Video) -> None:
    assert psnr(video, video) == PSNR_CEILING
    assert ssim(video, video) == pytest.approx(1)


@settings(max_examples=20)
@given(videos, masks)
def test_equal_videos_have_no_seam(video: Video, mask: NDArray[np.bool_]) -> None:
    assert seam_score(video, video, mask) in (0, None)


def test_psnr_is_that_of_the_mean_square() -> None:
    assert psnr(flat(100), flat(110)) == pytest.approx(10 * np.log10(255**2 / 100), abs=1e-4)
    assert psnr(flat(0), flat(255)) == pytest.approx(0, abs=1e-4)
    nearly = flat(100)
    nearly[0, 0, 0, 0] += 1e-4
    assert psnr(nearly, flat(100)) == PSNR_CEILING


def test_ssim_falls_with_noise_and_accepts_small_frames() -> None:
    video = np.random.default_rng(0).uniform(0, 255, SHAPE).astype(np.float32)
    noisy = np.random.default_rng(1).uniform(0, 255, SHAPE).astype(np.float32)
    assert ssim(noisy, video) < 0.3 < ssim((video + noisy) / np.float32(2), video) < 1
    assert ssim(video[:, :4, :4], video[:, :4, :4]) == pytest.approx(1)


@given(st.floats(-100, 100))
def test_seam_is_the_jump_that_the_edge_adds(step: float) -> None:
    video = flat(128)
    video[square()] += step
    assert seam_score(video, flat(128), square()) == pytest.approx(abs(step), rel=1e-3, abs=1e-3)


def test_edge_of_the_reference_is_not_a_seam() -> None:
    reference = flat(50)
    reference[square()] = 200
    assert seam_score(reference + 20, reference, square()) == pytest.approx(0, abs=1e-4)
    smoother = flat(50)
    smoother[square()] = 150
    assert seam_score(smoother, reference, square()) == pytest.approx(-50, abs=1e-3)


def test_slope_across_the_edge_is_not_a_seam() -> None:
    slope = np.broadcast_to(np.arange(12, dtype=np.float32)[:, None] * 10, SHAPE)
    assert seam_score(slope, flat(0), square()) == pytest.approx(0, abs=1e-4)


def test_region_without_an_edge_has_no_score() -> None:
    everything = np.ones(SHAPE[:3], np.bool_)
    assert seam_score(flat(1), flat(2), everything) is None
    assert seam_score(flat(1), flat(2), ~everything) is None


def test_token_grid_has_an_edge_around_every_token() -> None:
    blocks = np.kron(np.random.default_rng(0).uniform(0, 255, (3, 3)), np.ones((4, 4))).astype(np.float32)
    video = np.broadcast_to(blocks[None, :, :, None], SHAPE)
    across = [np.abs(np.diff(blocks, axis=axis)) for axis in (0, 1)]
    # Eight pairs of tokens side by side, and the same one above the other, of four pixels each.
    expected = sum(float(jumps.sum()) for jumps in across) / (2 * 2 * 12)
    assert seam_score(video, flat(0), token_grid(video, 4)) == pytest.approx(expected, rel=1e-3)
    assert seam_score(video, flat(0), token_grid(video, 12)) is None


def test_decoding_averages_what_encoding_enlarged() -> None:
    small = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 1), dtype=np.uint8).repeat(3, axis=3)
    frames = small.repeat(6, axis=1).repeat(6, axis=2)
    video = decode(encode_mp4(frames, 8), 6)
    assert video.shape == small.shape
    assert np.abs(video - small).mean() < 3
    with pytest.raises(ValueError, match="48 x 48 pixels are not multiples of 5"):
        decode(encode_mp4(frames, 8), 5)
