"""Verifies thumbnails: decoded, they show the middle frame within their bounds."""

from __future__ import annotations

import io

import numpy as np
import pytest
from chorus_rpc.limits import MAX_THUMBNAIL_BYTES, MAX_THUMBNAIL_PIXELS
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from services.denoiser.codec.thumbnail import choose_size, encode_thumbnail


def make_frames(height: int, width: int) -> np.ndarray:
    """Returns five frames, of which only the middle one has colours: red above, green below."""
    frames = np.zeros((5, height, width, 3), np.uint8)
    frames[2, : height // 2] = (200, 30, 40)
    frames[2, height // 2 :] = (10, 180, 90)
    return frames


@pytest.mark.parametrize(
    ("height", "width", "upscale", "size"),
    [
        (64, 64, 1, (64, 64)),
        (64, 64, 4, (256, 256)),
        (64, 128, 4, (160, 320)),
        (480, 832, 1, (185, 320)),
        (33, 57, 1, (33, 57)),
        (2_000, 400, 1, (320, 64)),
    ],
)
def test_picture_shows_the_middle_frame(height: int, width: int, upscale: int, size: tuple[int, int]) -> None:
    picture = encode_thumbnail(make_frames(height, width), upscale)
    assert (picture.height, picture.width) == size
    with Image.open(io.BytesIO(picture.data)) as decoded:
        assert decoded.format == "JPEG"
        assert decoded.size == (size[1], size[0])
        pixels = np.asarray(decoded.convert("RGB")).astype(int)
    assert np.abs(pixels[0] - (200, 30, 40)).max() < 12
    assert np.abs(pixels[-1] - (10, 180, 90)).max() < 12


def test_noise_stays_within_the_bound() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 320, 320, 3), dtype=np.uint8)
    assert len(encode_thumbnail(noise).data) <= MAX_THUMBNAIL_BYTES


def test_picture_above_the_bound_is_encoded_more_coarsely() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 320, 320, 3), dtype=np.uint8)
    full = len(encode_thumbnail(noise).data)
    assert len(encode_thumbnail(noise, max_bytes=full - 1).data) < full
    with pytest.raises(ValueError, match="the bound is 10"):
        encode_thumbnail(noise, max_bytes=10)


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_size_has_the_proportions_of_the_video(height: int, width: int) -> None:
    low, wide = choose_size(height, width)
    assert 1 <= low <= min(height, MAX_THUMBNAIL_PIXELS)
    assert 1 <= wide <= min(width, MAX_THUMBNAIL_PIXELS)
    if max(height, width) <= MAX_THUMBNAIL_PIXELS:
        assert (low, wide) == (height, width)
    else:
        assert max(low, wide) == MAX_THUMBNAIL_PIXELS
        scale = MAX_THUMBNAIL_PIXELS / max(height, width)
        assert abs(low - scale * height) <= 1
        assert abs(wide - scale * width) <= 1


def test_other_frames_are_rejected() -> None:
    for frames in (np.zeros((0, 2, 2, 3), np.uint8), np.zeros((1, 2, 2), np.uint8)):
        with pytest.raises(ValueError, match="frames: must be uint8"):
            encode_thumbnail(frames)
