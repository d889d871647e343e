"""Several outputs of one prompt: progress of all, and a file for each."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

from chorus_client import AsyncChorusClient, AsyncGenerationHandle, ChorusError, SpecOptions, Video

from chorus_cli.following import Follower, report, write
from chorus_cli.output import Output
from chorus_cli.rendering import make_progress

_CANCEL_SECONDS: Final = 5.0


async def generate_outputs(
    client: AsyncChorusClient,
    prompt: str,
    options: SpecOptions,
    outputs: int,
    output: Path | None,
    out: Output,
) -> list[Video]:
    """Generates several videos of a prompt, writes each when it is complete, and returns them.

    If some fail, the others are written and reported, and the last fault is raised. An interruption cancels
    all that have not ended.
    """
    progress = make_progress(out.notes)
    submission = asyncio.ensure_future(client.submit_many(prompt, outputs, **options))
    try:
        handles = await asyncio.shield(submission)
        with contextlib.ExitStack() as stack:
            waits = []
            for handle in handles:
                assert handle.accepted is not None  # `submit_many` returned it
                index = handle.accepted.output_index
                follower = Follower(out, progress, f"{index} of {outputs}: ")
                stack.enter_context(follower)
                path = None if output is None else name_output(output, index)
                waits.append(_wait_and_write(handle, follower, path, out))
            results = await asyncio.gather(*waits, return_exceptions=True)
    except asyncio.CancelledError:
        message = await _cancel(submission)
        out.status(message)
        out.error_record("CANCELLED", message)
        raise
    faults: list[BaseException] = []
    videos = []
    for result in results:
        if isinstance(result, BaseException):
            faults.append(result)
        else:
            video, path = result
            report(video, path, out)
            videos.append(video)
    for fault in faults[:-1]:
        if not isinstance(fault, ChorusError):
            raise fault
        out.error(fault)
    if faults:
        raise faults[-1]
    return videos


def name_output(path: Path, index: int) -> Path:
    """Returns the path of an output: out-1.mp4 for out.mp4."""
    return path.with_name(f"{path.stem}-{index}{path.suffix}")


async def _wait_and_write(
    handle: AsyncGenerationHandle, follower: Follower, path: Path | None, out: Output
) -> tuple[Video, Path]:
    assert handle.accepted is not None  # `submit_many` returned it
    follower.accepted(handle.accepted)
    video = await handle.result(on_event=follower.event)
    return video, await write(video, path, out)


async def _cancel(submission: asyncio.Future[tuple[AsyncGenerationHandle, ...]]) -> str:
    """Cancels the outputs of a submission that is complete or still under way; describes the outcome."""
    try:
        async with asyncio.timeout(_CANCEL_SECONDS):
            handles = await submission
            generations = await asyncio.gather(*(handle.cancel() for handle in handles))
    except (ChorusError, TimeoutError) as fault:
        return f"interrupted; the generations could not be cancelled: {fault or 'no answer'}"
    cancelled = sum(generation.state == "cancelled" for generation in generations)
    return f"interrupted; {cancelled} of {len(generations)} generations are cancelled"
