"""Pictures of videos and regions: a sheet of frames, or a film. Needs the extra `explain`.

Videos are uint8 [T, H, W, 3]. Those of one picture may differ in length: they are shown in proportion.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from chorus_cli.explain.video import Frames

FRAMES: Final = 8  # upper bound on the frames of a row of a sheet
PANELS: Final = 4  # upper bound on the videos in a row of a film
TILE: Final = 160  # longer side of a frame, in pixels
GAP: Final = 4
MARGIN: Final = 12
LABEL: Final = 190
HEAD: Final = 28
CAPTION: Final = 48

ACTIVE: Final = (230, 159, 0)
INACTIVE: Final = (40, 44, 52)
_PAPER: Final = (255, 255, 255)
_INK: Final = (25, 25, 30)
_LABEL_LETTERS: Final = 28
_FONT: Final = "DejaVuSans.ttf"


@dataclass(frozen=True)
class Row:
    """A video of a picture, and its label."""

    label: str
    video: Frames


def unpack(active: bytes, grid: Sequence[int]) -> NDArray[np.bool_]:
    """Unpacks the token mask of a StepCompletedEvent, [T, rows, columns]. Empty bytes mean every token.

    Raises ValueError if the mask does not fit the grid.
    """
    if len(grid) != 3 or 0 in grid:
        raise ValueError(f"token_grid: must be tokens along time, rows and columns, not {list(grid)}")
    count = math.prod(grid)
    if not active:
        return np.ones(grid, np.bool_)
    if len(active) != (count + 7) // 8:
        raise ValueError(
            f"active_tokens: must be {(count + 7) // 8} bytes for {count} tokens, not {len(active)}"
        )
    bits = np.unpackbits(np.frombuffer(active, np.uint8), count=count, bitorder="little")
    return bits.astype(np.bool_).reshape(grid)


def region_video(mask: NDArray[np.bool_], height: int, width: int) -> Frames:
    """Renders a mask [T, rows, columns] as a video [T, height, width, 3]: ACTIVE where set, else INACTIVE."""
    rows = np.arange(height) * mask.shape[1] // height
    columns = np.arange(width) * mask.shape[2] // width
    colours = np.array((INACTIVE, ACTIVE), np.uint8)
    video: Frames = colours[mask[:, rows][:, :, columns].astype(np.intp)]
    return video


def encode_png(picture: Image.Image) -> bytes:
    """Encodes a picture as a png."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def sheet(title: str, rows: Sequence[Row]) -> Image.Image:
    """Draws a row for each video: its label, then up to FRAMES of its frames from the first to the last."""
    longest = max(len(row.video) for row in rows)
    count = min(FRAMES, longest)
    width, height = tile_size(rows)
    picture = Image.new(
        "RGB",
        (
            2 * MARGIN + LABEL + count * (width + GAP) - GAP,
            2 * MARGIN + HEAD + len(rows) * (height + GAP) - GAP,
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(picture)
    letters = (picture.width - 2 * MARGIN) // 8
    draw.text((MARGIN, MARGIN), textwrap.shorten(title, letters, placeholder="…"), fill=_INK, font=_font(14))
    for i, row in enumerate(rows):
        y = MARGIN + HEAD + i * (height + GAP)
        _label(draw, (MARGIN, y), row.label)
        for j in range(count):
            frame = round(j * (longest - 1) / max(1, count - 1))
            x = MARGIN + LABEL + j * (width + GAP)
            picture.paste(_tile(row.video, frame, longest, (width, height)), (x, y))
    return picture


def film(rows: Sequence[Row]) -> Frames:
    """Draws all videos side by side, each under its label. Height and width are even, as H.264 requires."""
    longest = max(len(row.video) for row in rows)
    width, height = tile_size(rows)
    across = min(PANELS, len(rows))
    down = -(-len(rows) // across)
    panel = (max(width, LABEL) + GAP, height + CAPTION)
    empty = Image.new("RGB", (_even(across * panel[0] + GAP), _even(down * panel[1] + GAP)), _PAPER)
    places = [(GAP + i % across * panel[0], GAP + i // across * panel[1]) for i in range(len(rows))]
    draw = ImageDraw.Draw(empty)
    for row, place in zip(rows, places, strict=True):
        _label(draw, place, row.label)
    frames = np.empty((longest, empty.height, empty.width, 3), np.uint8)
    for frame in range(longest):
        picture = empty.copy()
        for row, (x, y) in zip(rows, places, strict=True):
            picture.paste(_tile(row.video, frame, longest, (width, height)), (x, y + CAPTION))
        frames[frame] = np.asarray(picture)
    return frames


def tile_size(rows: Sequence[Row]) -> tuple[int, int]:
    """Returns width and height of a frame in a picture: those of the first video, scaled to TILE."""
    _, height, width, _ = rows[0].video.shape
    scale = TILE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _tile(video: Frames, frame: int, longest: int, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(video[frame * len(video) // longest])
    shrinks = size[0] < image.width
    return image.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST)


def _label(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str) -> None:
    lines = textwrap.wrap(text, _LABEL_LETTERS, max_lines=3, placeholder="…")
    draw.multiline_text(place, "\n".join(lines), fill=_INK, font=_font(11))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.truetype(_FONT, size)
    except OSError:
        return ImageFont.load_default(size)  # ships with Pillow; has no letters beyond ASCII


def _even(number: int) -> int:
    return number + number % 2
