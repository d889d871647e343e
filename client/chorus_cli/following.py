"""Follows generations to their end: progress lines, the video on disk, and one line about the result."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from chorus.scheduler.v1.scheduler_pb2 import Generation, GenerationEvent, GenerationSpec
from chorus_client.aio import AsyncChorusClient, Video, raise_unless_succeeded, write_whole
from chorus_client.spec import REUSE_POLICIES, SpecOptions

from chorus_cli import rendering
from chorus_cli.output import Output

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], out: Output) -> T:
    """Runs the coroutine of a command; errors and Ctrl-C end the command with their exit status."""
    with out.faults():
        return asyncio.run(work)


class Follower:
    """Shows a generation as it proceeds: lines and a progress bar, or JSON lines."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._view = None if out.as_json else rendering.GenerationView(out.notes)
        self.saved = 0.0

    def __enter__(self) -> None:
        if self._view is not None:
            self._view.__enter__()

    def __exit__(self, *_: object) -> None:
        if self._view is not None:
            self._view.__exit__(None, None, None)

    def accepted(self, generation: Generation) -> None:
        self._out.json_line(accepted=generation)
        if self._view is not None:
            self._view.accepted(generation)

    def event(self, event: GenerationEvent) -> None:
        if event.HasField("succeeded"):
            self.saved = event.succeeded.seconds_saved
        self._out.json_line(event=event)
        if self._view is not None:
            self._view.event(event)


async def generate_and_save(
    client: AsyncChorusClient, prompt: str, options: SpecOptions, output: Path | None, out: Output
) -> Video:
    """Generates one video and writes it to `output`. An interruption cancels the generation."""
    follower = Follower(out)
    try:
        with follower:
            video = await client.generate(
                prompt, on_accepted=follower.accepted, on_event=follower.event, **options
            )
    except asyncio.CancelledError as interrupted:
        message = str(interrupted) or "interrupted"
        out.status(message)
        out.error_record("CANCELLED", message)
        raise
    await save(video, output, follower.saved, out)
    return video


async def follow(
    client: AsyncChorusClient, generation: Generation, after_sequence: int, timeout: float, out: Output
) -> tuple[Generation, float]:
    """Follows a generation to its end; returns it with the seconds saved. Raises GenerationFailed."""
    follower = Follower(out)
    identifier = generation.generation_id
    with follower:
        follower.accepted(generation)
        watching = client.watch(identifier, after_sequence, timeout=timeout)
        async with contextlib.aclosing(watching) as events:
            async for event in events:
                follower.event(event)
    generation = await client.get(identifier)
    raise_unless_succeeded(generation)
    return generation, follower.saved


async def save(video: Video, output: Path | None, saved: float, out: Output) -> None:
    """Writes the video to `output`, by default ID.mp4, and prints one line about it.

    Args:
        saved: seconds saved, as the last event reports them.
    """
    generation = video.generation
    path = output or Path(f"{generation.generation_id}.mp4")
    await asyncio.to_thread(write_whole, path, video.data)
    out.print(f"{path}: {rendering.summarize(generation, saved)}", generation=generation, output=str(path))


def options_from_spec(spec: GenerationSpec) -> SpecOptions:
    """Returns the options that request an accepted specification again, except for its deadline."""
    words = {policy: word for word, policy in REUSE_POLICIES.items()}
    options: SpecOptions = {
        "model": spec.model_id,
        "seed": spec.seed,
        "reuse": words.get(spec.reuse, ""),
        "no_store": spec.no_store,
    }
    if spec.HasField("shape"):
        options["frames"] = spec.shape.frames
        options["height"], options["width"] = spec.shape.height, spec.shape.width
    if spec.HasField("schedule"):
        options["sigmas"] = list(spec.schedule.sigmas)
    elif spec.HasField("steps"):
        options["steps"] = spec.steps
    if spec.HasField("explicit_reuse"):
        options["explicit_reuse"] = spec.explicit_reuse
    return options
