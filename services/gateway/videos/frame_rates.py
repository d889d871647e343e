"""Frame rates of the served models, kept for a while: they say how long a video is before it is complete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from chorus_client import AsyncChorusClient, ChorusError, Model

from services.runtime.logs import get_logger

log = get_logger("models")

_KEPT_SECONDS: Final = 60.0


class FrameRates:
    """Frames per second by model.

    Args:
        clock: monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rates: dict[str, float] = {}
        self._read = float("-inf")
        self._reading = asyncio.Lock()

    def keep(self, models: Iterable[Model]) -> None:
        """Replaces the rates by those of a list that the scheduler has just sent."""
        self._rates = {model.id: model.frames_per_second for model in models}
        self._read = self._clock()

    async def find(self, model: str, client: AsyncChorusClient) -> float:
        """Returns the rate of a model, 0 if it is unknown. Asks the scheduler at most once a minute.

        While the scheduler cannot list its models, the rates that are known stay in use.
        """
        async with self._reading:
            if self._clock() - self._read > _KEPT_SECONDS:
                try:
                    self.keep(await client.models())
                except ChorusError as error:
                    self._read = self._clock()
                    log.warning("frame rates not read", error=error.message)
        return self._rates.get(model, 0.0)
