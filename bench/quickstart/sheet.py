"""Contact sheet: a row for each prompt, with frames of the video with reuse and of the full computation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import av
from PIL import Image, ImageDraw, ImageFont

FRAMES: Final = 4
CELL: Final = 88
GAP: Final = 4
MARGIN: Final = 16
CAPTION: Final = 380
HEAD: Final = 34

_PAPER, _INK, _FAINT = (255, 255, 255), (25, 25, 30), (120, 120, 128)
_HIT, _MISS = (20, 120, 70), (150, 90, 20)


@dataclass(frozen=True)
class SheetRow:
    """Contents of a row.

    Attributes:
        prompt: Prompt of the row.
        hit: True if the request reused a donor.
        verdict: First line of text below the prompt: hit or miss, steps, seconds.
        detail: Second line of text: the donor.
        reused: mp4 generated with reuse.
        full: mp4 of the full computation.
    """

    prompt: str
    hit: bool
    verdict: str
    detail: str
    reused: bytes
    full: bytes


def sample_frames(video: bytes, count: int = FRAMES) -> list[Image.Image]:
    """Returns `count` frames of an mp4, evenly spaced from first to last, or all frames of a shorter one."""
    with av.open(io.BytesIO(video), "r") as container:
        frames = container.decode(video=0)
        images: list[Image.Image] = [frame.to_image() for frame in frames]  # type: ignore[no-untyped-call]
    if len(images) <= count or count < 2:
        return images[:count]
    return [images[round(i * (len(images) - 1) / (count - 1))] for i in range(count)]


def contact_sheet(rows: Sequence[SheetRow], title: str) -> Image.Image:
    """Draws the contact sheet."""
    block = FRAMES * (CELL + GAP) - GAP
    width = MARGIN + CAPTION + MARGIN + block + 2 * MARGIN + block + MARGIN
    height = MARGIN + 2 * HEAD + len(rows) * (CELL + 2 * GAP) + MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    left, right = MARGIN + CAPTION + MARGIN, MARGIN + CAPTION + MARGIN + block + 2 * MARGIN
    draw.text((MARGIN, MARGIN), title, fill=_INK, font=_font(18))
    for x, words in ((left, "with reuse"), (right, "full computation")):
        draw.text((x, MARGIN + HEAD + 8), words, fill=_FAINT, font=_font(14))
    y = MARGIN + 2 * HEAD
    for row in rows:
        _caption(draw, y, row)
        for x, video in ((left, row.reused), (right, row.full)):
            for i, frame in enumerate(sample_frames(video)):
                sheet.paste(frame.resize((CELL, CELL), Image.Resampling.BOX), (x + i * (CELL + GAP), y))
        y += CELL + 2 * GAP
    return sheet


def _caption(draw: ImageDraw.ImageDraw, y: int, row: SheetRow) -> None:
    font, small = _font(14), _font(12)
    lines = wrap(draw, row.prompt, font, CAPTION)[:2]
    for i, line in enumerate(lines):
        draw.text((MARGIN, y + 2 + 18 * i), line, fill=_INK, font=font)
    draw.text((MARGIN, y + 42), row.verdict, fill=_HIT if row.hit else _MISS, font=font)
    for i, line in enumerate(wrap(draw, row.detail, small, CAPTION)[:1]):
        draw.text((MARGIN, y + 64 + 15 * i), line, fill=_FAINT, font=small)


def wrap(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Breaks text into lines of at most `width` pixels; a longer word gets its own line."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType")
    return font
