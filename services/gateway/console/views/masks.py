"""Regions of steps as outlines of SVG, from the bit masks of the events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from chorus_client.report import Step

# Upper bound on the cells of all masks of a page; further masks are left out, and the page says so.
_MAX_CELLS: Final = 400_000


@dataclass(frozen=True)
class Mask:
    """Tokens that steps computed.

    Attributes:
        steps: numbers of the steps, which share it.
        rows, columns: size of the grid.
        share: share of the tokens that are computed, 0 to 1.
        outlines: for each part of the time, the computed cells as the `d` of a path; a cell is 1 × 1.
    """

    steps: tuple[int, ...]
    rows: int
    columns: int
    share: float
    outlines: tuple[str, ...]


def build_masks(steps: Sequence[Step]) -> tuple[tuple[Mask, ...], int]:
    """Returns the masks of the steps that computed a region, equal ones once, and the number left out: masks
    that do not fit their grid, or exceed the bound on cells.
    """
    grouped: dict[tuple[bytes, tuple[int, ...]], list[int]] = {}
    for step in steps:
        if step.active:
            grouped.setdefault((step.active, step.grid), []).append(step.number)
    masks, cells, left_out = [], 0, 0
    for (active, grid), numbers in grouped.items():
        count = math.prod(grid)
        if len(grid) != 3 or len(active) != (count + 7) // 8 or cells + count > _MAX_CELLS:
            left_out += 1
            continue
        cells += count
        masks.append(_build_mask(active, grid, numbers))
    return tuple(masks), left_out


def _build_mask(active: bytes, grid: Sequence[int], numbers: Sequence[int]) -> Mask:
    times, rows, columns = grid
    bits = int.from_bytes(active, "little") & ((1 << math.prod(grid)) - 1)
    size = rows * columns
    outlines = tuple(_outline(bits >> time * size, rows, columns) for time in range(times))
    return Mask(tuple(numbers), rows, columns, bits.bit_count() / max(1, math.prod(grid)), outlines)


def _outline(bits: int, rows: int, columns: int) -> str:
    """Returns the runs of set bits of each row as rectangles."""
    parts = []
    for row in range(rows):
        line = bits >> row * columns & ((1 << columns) - 1)
        column = 0
        while line:
            skipped = (line & -line).bit_length() - 1
            column, line = column + skipped, line >> skipped
            run = (~line & (line + 1)).bit_length() - 1
            parts.append(f"M{column} {row}h{run}v1h-{run}z")
            column, line = column + run, line >> run
    return "".join(parts)
