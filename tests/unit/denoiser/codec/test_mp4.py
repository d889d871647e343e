"""Tests of mp4 encoding: played back, the frames are those that were encoded."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from services.denoiser.codec.mp4 import encode_mp4, to_frames


def test_frames_are_scaled_clipped_and_enlarged() -> None:
    video = torch.full((3, 2, 2, 3), -1.0)
    video[0, 1, 0, 2], video[1, 1, 0, 2] = 1.0, 7.0
    frames = to_frames(video, upscale=3)
    assert frames.shape == (2, 6, 9, 3)
    assert frames.dtype == np.uint8
    assert (frames[1, :3, 6:] == (255, 255, 0)).all()
    assert frames.sum() == 9 * (255 + 255)


def test_playback_shows_the_encoded_frames() -> None:
    ramp = torch.linspace(-1, 1, 16).view(1, 1, 1, 16).expand(3, 8, 16, 16).clone()
    ramp[0, 4:] = 0.5
    frames = to_frames(ramp, upscale=4)
    raw = encode_mp4(frames, fps=8)
    with av.open(io.BytesIO(raw), mode="r") as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == (64, 64)
        assert stream.average_rate == Fraction(8)
        shown = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
    assert shown.shape == frames.shape
    assert np.abs(shown.astype(int) - frames).mean() < 6
    assert raw.index(b"moov") < raw.index(b"mdat")  # plays before it is complete


def test_same_frames_give_the_same_bytes() -> None:
    frames = to_frames(torch.zeros(3, 4, 16, 16))
    assert encode_mp4(frames, 8) == encode_mp4(frames, 8)


def test_invalid_input_is_rejected_by_name() -> None:
    with pytest.raises(ValueError, match="NaN"):
        to_frames(torch.full((3, 1, 2, 2), float("nan")))
    with pytest.raises(ValueError, match="video: must be"):
        to_frames(torch.zeros(1, 2, 2, 2))
    with pytest.raises(ValueError, match="upscale"):
        to_frames(torch.zeros(3, 1, 2, 2), upscale=0)
    with pytest.raises(ValueError, match="even height and width, not 3 x 2"):
        encode_mp4(np.zeros((1, 3, 2, 3), np.uint8), 8)
    with pytest.raises(ValueError, match="fps"):
        encode_mp4(np.zeros((1, 2, 2, 3), np.uint8), 0)
    with pytest.raises(ValueError, match="frames"):
        encode_mp4(np.zeros((0, 2, 2, 3), np.uint8), 8)


def test_pixels_are_repeated_while_they_are_encoded() -> None:
    frames = np.zeros((2, 5, 7, 3), np.uint8)
    frames[:, 2:, 3:] = (200, 40, 90)
    with av.open(io.BytesIO(encode_mp4(frames, 8, upscale=4)), mode="r") as container:
        shown = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert shown.shape == (2, 20, 28, 3)
    expected = frames.repeat(4, axis=1).repeat(4, axis=2).astype(int)
    assert np.abs(shown.astype(int) - expected).mean() < 4
    with pytest.raises(ValueError, match="needs even height and width, not 15 x 21"):
        encode_mp4(frames, 8, upscale=3)
