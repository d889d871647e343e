"""Where the time of a generation went, as bars on one axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from chorus_client import Timings

_PARTS: Final = (
    ("queued", "In the queue"),
    ("embed", "Encode the prompt"),
    ("lookup", "Find and compare donors"),
    ("fetch", "Fetch the donor's latents"),
    ("denoise", "Compute steps"),
    ("decode", "Decode and encode the video"),
)


@dataclass(frozen=True)
class Bar:
    """A part of the time.

    Attributes:
        begin, width: place on the axis, in thousandths of all time.
    """

    name: str
    label: str
    seconds: float
    begin: float
    width: float


def build_waterfall(timings: Timings) -> tuple[Bar, ...]:
    """Returns a bar for each part, one after another; empty if no time is recorded."""
    seconds = [(name, label, max(0.0, getattr(timings, f"{name}_seconds"))) for name, label in _PARTS]
    total = sum(each for _, _, each in seconds)
    if total <= 0:
        return ()
    bars, begin = [], 0.0
    for name, label, each in seconds:
        width = 1000 * each / total
        bars.append(Bar(name, label, each, round(begin, 1), round(width, 1)))
        begin += width
    return tuple(bars)


def compare_savings(predicted: float, measured: float) -> tuple[float, float]:
    """Returns the lengths of two bars, in thousandths of the longer one; negative savings have none."""
    longest = max(predicted, measured)
    if longest <= 0:
        return 0.0, 0.0
    return round(1000 * max(0.0, predicted) / longest, 1), round(1000 * max(0.0, measured) / longest, 1)
