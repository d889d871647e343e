"""Follows generations to their end: progress lines, the video on disk, and one line about the result."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from chorus.scheduler.v1.scheduler_pb2 import GenerationSpec
from chorus_client import AsyncChorusClient, Event, Generation, SpecOptions, Video
from chorus_client.spec import REUSE_POLICIES, WEBHOOK_EVENTS
from chorus_client.states import PRIORITIES
from rich.progress import Progress

from chorus_cli import rendering
from chorus_cli.output import Output

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], out: Output) -> T:
    """Runs the coroutine of a command; errors and Ctrl-C end the command with their exit status."""
    with out.faults():
        return asyncio.run(work)


class Follower:
    """Shows a generation as it proceeds: lines and a progress bar, or JSON lines.

    Args:
        progress: progress display that several followers share; None for one of its own.
        label: begins every line.
    """

    def __init__(self, out: Output, progress: Progress | None = None, label: str = "") -> None:
        self._out = out
        self._view = None if out.as_json else rendering.GenerationView(out.notes, progress, label)
        self._id = ""
        self.saved = 0.0

    def __enter__(self) -> None:
        if self._view is not None:
            self._view.__enter__()

    def __exit__(self, *_: object) -> None:
        if self._view is not None:
            self._view.__exit__(None, None, None)

    def accepted(self, generation: Generation) -> None:
        self._id = generation.id
        self._out.json_line(accepted=generation.proto)
        if self._view is not None:
            self._view.accepted(generation.proto)

    def event(self, event: Event) -> None:
        self.saved = event.seconds_saved or self.saved
        self._out.json_line(event=event.proto, generation_id=self._id)
        if self._view is not None:
            self._view.event(event.proto)


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
    await save(video, output, out)
    return video


async def follow(
    client: AsyncChorusClient, generation: Generation, after_sequence: int, timeout: float, out: Output
) -> tuple[Generation, float]:
    """Follows a generation to its end; returns it with the seconds saved. Raises GenerationError."""
    follower = Follower(out)
    handle = client.handle(generation.id)
    with follower:
        follower.accepted(generation)
        async with contextlib.aclosing(handle.events(after_sequence, timeout=timeout)) as events:
            async for event in events:
                follower.event(event)
    generation = await handle.status()
    generation.raise_for_state()
    return generation, follower.saved


async def save(video: Video, output: Path | None, out: Output) -> None:
    """Writes the video to `output`, by default ID.mp4, and prints one line about it."""
    report(video, await write(video, output, out), out)


async def write(video: Video, output: Path | None, out: Output) -> Path:
    """Writes the video to `output`, by default ID.mp4. Returns its path."""
    generation = video.generation
    path = output or Path(f"{generation.id}.mp4")
    try:
        await asyncio.to_thread(video.save, path)
    except OSError:
        out.status(f"the video is not lost: `chorus get {generation.id} -o FILE` downloads it again")
        raise
    return path


def report(video: Video, path: Path, out: Output) -> None:
    """Prints one line about a video that was written to `path`."""
    generation = video.generation
    out.print(
        f"{path}: {rendering.summarize(generation.proto, video.seconds_saved)}",
        generation=generation.proto,
        output=str(path),
    )


def options_from_spec(spec: GenerationSpec) -> SpecOptions:
    """Returns the options that request an accepted specification again, except for its deadline."""
    words = {policy: word for word, policy in REUSE_POLICIES.items()}
    options: SpecOptions = {
        "model": spec.model_id,
        "seed": spec.seed,
        "reuse": words.get(spec.reuse, ""),
        "max_reuse_steps": spec.max_reuse_steps,
        "donor": spec.donor_generation_id,
        "priority": next((word for word, value in PRIORITIES.items() if value == spec.priority), ""),
        "no_store": spec.no_store,
        "labels": dict(spec.labels),
        "step_previews": spec.step_previews,
    }
    if spec.HasField("webhook"):
        options["webhook"] = spec.webhook.url
        options["webhook_events"] = [
            word for word, event in WEBHOOK_EVENTS.items() if event in spec.webhook.events
        ]
    if spec.HasField("shape"):
        options["frames"] = spec.shape.frames
        options["height"], options["width"] = spec.shape.height, spec.shape.width
    if spec.HasField("schedule"):
        options["sigmas"] = list(spec.schedule.sigmas)
    elif spec.HasField("steps"):
        options["steps"] = spec.steps
    if spec.retention.pinned:
        options["pin"] = True
    if spec.retention.HasField("lifetime"):
        options["lifetime"] = spec.retention.lifetime.ToNanoseconds() / 1e9
    if spec.HasField("explicit_reuse"):
        options["explicit_reuse"] = spec.explicit_reuse
    return options
