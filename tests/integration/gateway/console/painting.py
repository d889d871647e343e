"""Short videos of moving shapes, which browsers can play."""

from __future__ import annotations

import io
import math
from fractions import Fraction

import av
import numpy as np
from PIL import Image, ImageDraw

SIDE, FRAMES, RATE = 256, 16, 8
GROUND = (24, 27, 34)


def draw_frame(colour: str, shape: str, share: float) -> Image.Image:
    """Returns the frame at a share of the video, 0 to 1: a shape on its way to the right."""
    picture = Image.new("RGB", (SIDE, SIDE), GROUND)
    x, y = 48 + share * 160, 128 + 30 * math.sin(share * 2 * math.pi)
    box = (x - 38, y - 38, x + 38, y + 38)
    draw = ImageDraw.Draw(picture)
    if shape == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.ellipse(box, fill=colour)
    return picture


def encode_video(colour: str, shape: str) -> bytes:
    """Returns an mp4 of FRAMES frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE))
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for index in range(FRAMES):
            picture = np.asarray(draw_frame(colour, shape, index / (FRAMES - 1)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_thumbnail(colour: str, shape: str) -> bytes:
    """Returns the middle frame as a JPEG."""
    buffer = io.BytesIO()
    draw_frame(colour, shape, 0.5).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def encode_preview(colour: str, shape: str, step: int) -> bytes:
    """Returns the picture of a step as a JPEG: the middle frame, the clearer the later the step."""
    picture = Image.effect_noise((128, 128), 90).convert("RGB")
    clear = draw_frame(colour, shape, 0.5).resize((128, 128))
    buffer = io.BytesIO()
    Image.blend(picture, clear, step / 8).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def pack_region(times: int, rows: int, columns: int) -> bytes:
    """Returns the bit mask of a disc that moves with the shape."""
    bits = 0
    for time in range(times):
        share = (time + 0.5) / times
        x, y = (48 + share * 160) / SIDE, (128 + 30 * math.sin(share * 2 * math.pi)) / SIDE
        for row in range(rows):
            for column in range(columns):
                distance = math.hypot((column + 0.5) / columns - x, (row + 0.5) / rows - y)
                if distance < 0.24:
                    bits |= 1 << (time * rows + row) * columns + column
    return bits.to_bytes((times * rows * columns + 7) // 8, "little")
