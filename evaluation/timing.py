"""Timed generation of one video."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Unpack

from chorus.scheduler.v1.scheduler_pb2 import Generation
from chorus_client import ChorusClient, SpecOptions

DEADLINE_SECONDS: Final = 300.0
# The first generations, and the first search in a non-empty cache, initialise what later ones reuse.
WARM_UPS: Final = 2
WARM_UP_PROMPT: Final = "warming up, unlike anything requested later"


@dataclass(frozen=True)
class TimedGeneration:
    """A generation and its duration.

    Attributes:
        generation: Final state of the generation.
        video: The mp4.
        seconds: Time from the call until the video has arrived, less the time in the queue, where the request
            waits until the latents of the previous run are admitted.
    """

    generation: Generation
    video: bytes
    seconds: float

    @property
    def overhead_seconds(self) -> float:
        """Seconds in which latents were neither denoised nor decoded to an mp4."""
        timings = self.generation.timings
        return self.seconds - timings.denoise_seconds - timings.decode_seconds


def generate_timed(client: ChorusClient, prompt: str, **options: Unpack[SpecOptions]) -> TimedGeneration:
    """Generates a video and measures its duration. Raises the errors of `client.generate`."""
    options.setdefault("deadline", DEADLINE_SECONDS)
    begin = time.perf_counter()
    video = client.generate(prompt, **options)
    generation = video.generation.proto
    seconds = time.perf_counter() - begin - generation.timings.queued_seconds
    return TimedGeneration(generation, video.data, seconds)


def warm_up(client: ChorusClient, **options: Unpack[SpecOptions]) -> None:
    """Runs generations that are not measured, from a prompt that resembles no later one."""
    for _ in range(WARM_UPS):
        generate_timed(client, WARM_UP_PROMPT, **options)
