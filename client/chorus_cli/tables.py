"""Tables, ages and sizes as text for people."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from chorus_cli.output import one_line

# On a narrower terminal the lines of a list wrap: ids and states are never cut.
_MIN_LAST_WIDTH = 16
_GAP = "  "


def fit_last_column(rows: Sequence[tuple[str, ...]], width: int | None, right: Collection[int] = ()) -> str:
    """Lays out rows in aligned columns and cuts the last one to fit.

    Args:
        width: columns of the terminal. None: nothing is cut, and tabs separate the columns.
        right: columns, from 0, that are aligned to the right.
    """
    if width is None:
        return "\n".join("\t".join(row) for row in rows)
    table = align_columns([row[:-1] for row in rows], right).splitlines()
    size = max(map(len, table))
    left = max(width - size - len(_GAP), _MIN_LAST_WIDTH)
    return "\n".join(
        f"{line:<{size}}{_GAP}{one_line(row[-1], left)}".rstrip()
        for line, row in zip(table, rows, strict=True)
    )


def align_columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Lays out rows in aligned columns, as wide as their longest cell; nothing is cut.

    Args:
        right: columns, from 0, that are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def cells(row: Iterable[str]) -> Iterable[str]:
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            yield cell.rjust(width) if i in right else cell.ljust(width)

    return "\n".join(_GAP.join(cells(row)).rstrip() for row in rows)


def format_age(seconds: float) -> str:
    """Returns a duration in its largest unit."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def format_size(count: int) -> str:
    """Returns a number of bytes in its largest unit."""
    for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} B"
