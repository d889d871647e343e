"""A generation in the queue: when it starts, and the classes next to its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from chorus_client import Generation

from services.gateway.console.views.numbers import format_seconds

_CLASSES: Final = ("low", "normal", "high")


@dataclass(frozen=True)
class Waiting:
    """A row of the queue.

    Attributes:
        seconds: time since its acceptance, in seconds.
        start: when it is expected to start, in words.
        lower, higher: classes next to its own; empty at the ends.
    """

    generation: Generation
    seconds: float
    start: str
    lower: str
    higher: str


def describe_waiting(generation: Generation, now: datetime) -> Waiting:
    place = _CLASSES.index(generation.priority)
    return Waiting(
        generation=generation,
        seconds=max(0.0, (now - generation.created).total_seconds()),
        start=describe_start(generation, now),
        lower=_CLASSES[place - 1] if place else "",
        higher=_CLASSES[place + 1] if place + 1 < len(_CLASSES) else "",
    )


def describe_start(generation: Generation, now: datetime) -> str:
    """Returns when a generation that waits is expected to start, in words."""
    if generation.state == "waiting":
        return "when a service is back"
    if generation.predicted_start is None:
        return "unknown"
    seconds = (generation.predicted_start - now).total_seconds()
    if seconds < 1.5:
        return "soon"
    # No fractions: it is an estimate.
    return f"in about {format_seconds(seconds) if seconds >= 10 else f'{seconds:.0f} s'}"
