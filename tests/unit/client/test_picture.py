"""Verifies masks of regions, and the pictures that show them."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from chorus_cli.explain.picture import (
    ACTIVE,
    FRAMES,
    GAP,
    HEAD,
    INACTIVE,
    LABEL,
    MARGIN,
    TILE,
    Row,
    film,
    region_video,
    sheet,
    unpack,
)
from chorus_cli.explain.video import Frames, decode_mp4, encode_mp4
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

masks = array_shapes(min_dims=3, max_dims=3, max_side=7).flatmap(lambda shape: arrays(np.bool_, shape))


def packed(mask: NDArray[np.bool_]) -> bytes:
    """Packs a mask independently: one bit a token over time, rows and columns, the lowest first."""
    number = sum(1 << i for i, active in enumerate(mask.flatten().tolist()) if active)
    return number.to_bytes((mask.size + 7) // 8, "little")


def plain(level: int, frames: int = 16, height: int = 24, width: int = 48) -> Frames:
    return np.full((frames, height, width, 3), level, np.uint8)


@given(masks)
def test_unpacking_a_packed_mask_returns_it(mask: NDArray[np.bool_]) -> None:
    assert np.array_equal(unpack(packed(mask), mask.shape), mask)


def test_empty_bytes_mean_every_token() -> None:
    assert unpack(b"", (2, 3, 4)).all()


@pytest.mark.parametrize(
    ("active", "grid", "words"),
    [
        (b"\x01", (2, 3, 4), "active_tokens: must be 3 bytes for 24 tokens, not 1"),
        (b"\x01\x00\x00\x00", (2, 3, 4), "not 4"),
        (b"\x01", (2, 3), "token_grid"),
        (b"", (), "token_grid"),
        (b"\x01", (0, 2, 2), "token_grid"),
    ],
)
def test_mask_that_does_not_fit_its_grid_is_rejected(
    active: bytes, grid: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        unpack(active, grid)


@given(masks, st.integers(1, 4))
def test_region_covers_its_tokens_pixels(mask: NDArray[np.bool_], side: int) -> None:
    video = region_video(mask, mask.shape[1] * side, mask.shape[2] * side)
    assert video.shape == (len(mask), mask.shape[1] * side, mask.shape[2] * side, 3)
    pixels = mask.repeat(side, axis=1).repeat(side, axis=2)
    assert np.array_equal((video == ACTIVE).all(-1), pixels)
    assert np.array_equal((video == INACTIVE).all(-1), ~pixels)


def test_sheet_has_a_row_for_each_video_and_shows_it() -> None:
    mask = np.zeros((2, 2, 4), np.bool_)
    mask[1] = True  # the second half of the time
    rows = [Row("donor", plain(10)), Row("region", region_video(mask, 24, 48)), Row("result", plain(200))]
    picture = sheet("gen-1: a prompt", rows)
    tile = (TILE, TILE // 2)
    assert picture.size == (
        2 * MARGIN + LABEL + FRAMES * (tile[0] + GAP) - GAP,
        2 * MARGIN + HEAD + 3 * (tile[1] + GAP) - GAP,
    )

    def middle(row: int, frame: int) -> object:
        x = MARGIN + LABEL + frame * (tile[0] + GAP) + tile[0] // 2
        return picture.getpixel((x, MARGIN + HEAD + row * (tile[1] + GAP) + tile[1] // 2))

    assert [middle(0, 0), middle(0, FRAMES - 1)] == [(10, 10, 10)] * 2
    assert [middle(1, 0), middle(1, FRAMES - 1)] == [INACTIVE, ACTIVE]
    assert middle(2, 3) == (200, 200, 200)
    labels = np.asarray(picture)[:, MARGIN : MARGIN + LABEL].min(axis=-1)
    for row in range(3):
        y = MARGIN + HEAD + row * (tile[1] + GAP)
        assert labels[y : y + tile[1]].min() < 100, "no label"


def test_sheet_of_a_short_video_shows_each_frame_once() -> None:
    video = np.stack([plain(level, 1)[0] for level in (0, 100, 200)])
    picture = sheet("", [Row("", video)])
    assert picture.width == 2 * MARGIN + LABEL + 3 * (TILE + GAP) - GAP
    y = MARGIN + HEAD + 5
    shown = [picture.getpixel((MARGIN + LABEL + i * (TILE + GAP) + 5, y)) for i in range(3)]
    assert shown == [(0, 0, 0), (100, 100, 100), (200, 200, 200)]


@pytest.mark.parametrize("count", [1, 3, 6])
def test_film_plays_all_videos_at_once_and_encodes(count: int) -> None:
    videos = [np.stack([plain(20 * i + 10 * t, 1)[0] for t in range(3)]) for i in range(count)]
    frames = film([Row(f"row {i}", video) for i, video in enumerate(videos)])
    assert len(frames) == 3
    for t, frame in enumerate(frames):
        assert [side % 2 for side in frame.shape[:2]] == [0, 0]
        for i in range(count):
            assert (frame == 20 * i + 10 * t).all(-1).sum() >= TILE * TILE // 2
    decoded = decode_mp4(encode_mp4(frames, 8))
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 3


COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 40, 90), (12, 200, 180), (255, 255, 255), (1, 2, 3)]


@pytest.mark.fault("mp4-colours")
@pytest.mark.parametrize("size", [(46, 70), (720, 1280)])
def test_decoded_flat_colours_are_within_one_level(size: tuple[int, int]) -> None:
    frames = np.stack([np.full((*size, 3), colour, np.uint8) for colour in COLOURS])
    assert np.abs(decode_mp4(encode_mp4(frames, 8)).astype(int) - frames).max() <= 1


@pytest.mark.fault("mp4-colours")
@pytest.mark.parametrize(
    ("space", "levels"),
    [
        (Colorspace.ITU601, ColorRange.MPEG),
        (Colorspace.ITU601, ColorRange.JPEG),
        (Colorspace.ITU709, ColorRange.MPEG),
        (Colorspace.ITU709, ColorRange.JPEG),
    ],
)
def test_reader_honours_the_tags_of_a_file(space: Colorspace, levels: ColorRange) -> None:
    frames = np.stack([np.full((64, 64, 3), colour, np.uint8) for colour in COLOURS])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 64, "yuv420p", {"crf": "10"}
        stream.codec_context.colorspace, stream.codec_context.color_range = space, levels
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=space, dst_color_range=levels
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert np.abs(decode_mp4(buffer.getvalue()).astype(int) - frames).max() <= 2
