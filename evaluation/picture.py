"""Videos of one prompt and the regions between them: as a sheet of frames, or as a film.

Videos are uint8 [T, H, W, 3]. Those of a picture may differ in length: they are shown in proportion.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from evaluation.pixels import decode

Frames: TypeAlias = NDArray[np.uint8]

FRAMES: Final = 8  # of a sheet, at most
PANELS: Final = 4  # side by side in a film, at most
TILE: Final = 160  # pixels, the longer side of a frame
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


@dataclass(frozen=True)
class Row:
    label: str
    video: Frames


def unpack(active: bytes, grid: Sequence[int]) -> NDArray[np.bool_]:
    """The mask [T, rows, columns] of tokens that `StepCompletedEvent` packs; empty: all of them.

    Raises ValueError when it does not fit the grid.
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
    """A mask [T, rows, columns] as a video of so many pixels: ACTIVE where it holds, INACTIVE elsewhere."""
    rows = np.arange(height) * mask.shape[1] // height
    columns = np.arange(width) * mask.shape[2] // width
    colours = np.array((INACTIVE, ACTIVE), np.uint8)
    video: Frames = colours[mask[:, rows][:, :, columns].astype(np.intp)]
    return video


def frames_of(mp4: bytes) -> Frames:
    """The frames of an mp4."""
    frames: Frames = decode(mp4).round().astype(np.uint8)
    return frames


def png_of(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def sheet(title: str, rows: Sequence[Row]) -> Image.Image:
    """A row for each video: its label, then up to FRAMES of its frames from the first to the last."""
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
    """All videos at once, each under its label; sides are even, as H.264 needs."""
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
    """Width and height of a frame in a picture: those of the first video, scaled."""
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


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _even(number: int) -> int:
    return number + number % 2
