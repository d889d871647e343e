"""One generation under the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Unpack

from chorus.scheduler.v1.scheduler_pb2 import Generation
from chorus_client import ChorusClient, SpecOptions

DEADLINE_SECONDS: Final = 300.0
# The first generations pay for what later ones find warm, the first search among a cache's entries too.
WARM_UPS: Final = 2
WARM_UP_PROMPT: Final = "warming up, unlike anything asked later"


@dataclass(frozen=True)
class Run:
    """One generation. `seconds`: from the call until the video is in hand, without the time in the queue,
    where it stands behind the admission of the run before it.
    """

    generation: Generation
    video: bytes
    seconds: float


def timed(client: ChorusClient, prompt: str, **options: Unpack[SpecOptions]) -> Run:
    """Generates a video; raises what `client.generate` raises."""
    options.setdefault("deadline", DEADLINE_SECONDS)
    begin = time.perf_counter()
    video = client.generate(prompt, **options)
    generation = video.generation.proto
    seconds = time.perf_counter() - begin - generation.timings.queued_seconds
    return Run(generation, video.data, seconds)


def warm_up(client: ChorusClient, **options: Unpack[SpecOptions]) -> None:
    """Generations that nobody counts; their latents are like those of no prompt asked later."""
    for _ in range(WARM_UPS):
        timed(client, WARM_UP_PROMPT, **options)
