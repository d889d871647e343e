"""Tests of mp4 encoding: played back, the frames are those that were encoded."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from services.denoiser.codec.mp4 import encode_mp4, to_frames

PALETTE = [
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (0, 0, 0),
    (255, 255, 255), (128, 128, 128), (200, 40, 90), (12, 200, 180), (90, 20, 250), (250, 240, 3), (1, 2, 3),
]  # fmt: skip


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


def decode_by_standard(mp4: bytes) -> np.ndarray:
    """Converts the planes to RGB by the formula of BT.709 in the limited range, not by a library."""
    shown = []
    with av.open(io.BytesIO(mp4), mode="r") as container:
        for frame in container.decode(video=0):
            h, w = frame.height, frame.width
            planes = frame.to_ndarray(format="yuv420p").astype(float)
            chroma = planes[h:].reshape(2, h // 2, w // 2).repeat(2, axis=1).repeat(2, axis=2)
            y, (u, v) = (planes[:h] - 16) / 219, (chroma - 128) / 224
            red, blue = y + 1.5748 * v, y + 1.8556 * u
            green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
            shown.append(np.stack((red, green, blue), axis=-1))
    return (255 * np.stack(shown)).round().clip(0, 255)


@pytest.mark.fault("mp4-colours")
@pytest.mark.parametrize(
    ("size", "upscale"), [((48, 48), 6), ((46, 70), 1), ((480, 832), 1), ((720, 1280), 1)]
)
def test_flat_colours_are_within_one_level_in_a_player(size: tuple[int, int], upscale: int) -> None:
    colours = PALETTE if size[0] < 480 else PALETTE[::4]
    frames = np.stack([np.full((*size, 3), colour, np.uint8) for colour in colours])
    mp4 = encode_mp4(frames, 8, upscale)
    expected = frames.repeat(upscale, axis=1).repeat(upscale, axis=2).astype(int)
    assert np.abs(decode_by_standard(mp4) - expected).max() <= 1


@pytest.mark.fault("mp4-colours")
@pytest.mark.parametrize("size", [(32, 32), (720, 1280)])
def test_colours_are_tagged_in_the_stream_and_in_the_file(size: tuple[int, int]) -> None:
    mp4 = encode_mp4(np.zeros((1, *size, 3), np.uint8), 8)
    # ISO/IEC 14496-12: primaries, transfer and matrix 1 are BT.709; the last bit is the full range.
    assert b"colrnclx" + bytes((0, 1, 0, 1, 0, 1, 0)) in mp4
    with av.open(io.BytesIO(mp4), mode="r") as container:
        [packet, *_] = container.demux(video=0)
        coded = bytes(packet)
        headers = bytes(container.streams.video[0].codec_context.extradata or b"")
    raw = av.CodecContext.create("h264", "r")
    raw.extradata = headers  # without the file's tags: the stream's own
    frames = raw.decode(av.Packet(coded)) or raw.decode(None)
    assert frames[0].colorspace == 1
    assert frames[0].color_primaries == 1
    assert frames[0].color_trc == 1
    assert frames[0].color_range == 1


@pytest.mark.fault("number-promises")
def test_frame_rate_holds_at_both_edges() -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    for fps in (0.001, 23.976, 240.0):
        with av.open(io.BytesIO(encode_mp4(frames, fps)), mode="r") as container:
            rate = container.streams.video[0].average_rate
            assert rate is not None
            assert float(rate) == pytest.approx(fps)
    for fps in (0.0009, 240.1, float("nan")):
        with pytest.raises(ValueError, match=r"fps: must be 0\.001 to 240"):
            encode_mp4(frames, fps)
