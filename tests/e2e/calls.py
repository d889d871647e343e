"""Scheduler calls of the end-to-end tests, using only the generated stubs."""

from __future__ import annotations

import uuid
from typing import Any

import grpc.aio
from chorus.scheduler.v1 import scheduler_pb2 as pb

ENDED = (pb.GENERATION_STATE_SUCCEEDED, pb.GENERATION_STATE_FAILED, pb.GENERATION_STATE_CANCELLED)


async def submit(scheduler: Any, prompt: str, request_id: str = "", **spec: Any) -> pb.Generation:
    """Submits a generation, with a random request id by default."""
    reply = await scheduler.SubmitGeneration(
        pb.SubmitGenerationRequest(
            request_id=request_id or str(uuid.uuid4()), spec=pb.GenerationSpec(prompt=prompt, **spec)
        ),
        timeout=20,
    )
    generation: pb.Generation = reply.generation
    return generation


async def watch_to_end(
    scheduler: Any, generation_id: str, after: int = 0, seconds: float = 90.0
) -> list[pb.GenerationEvent]:
    """Returns every event. Resumes after the last sequence number when a killed server breaks the stream."""
    events: list[pb.GenerationEvent] = []
    for _ in range(200):
        try:
            async for reply in scheduler.WatchGeneration(
                pb.WatchGenerationRequest(generation_id=generation_id, after_sequence=after),
                timeout=seconds,
                wait_for_ready=True,
            ):
                events.append(reply.event)
                after = reply.event.sequence
            return events
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
    raise AssertionError("the stream broke 200 times")


async def get(scheduler: Any, generation_id: str) -> pb.Generation:
    """Returns the current state of a generation."""
    reply = await scheduler.GetGeneration(pb.GetGenerationRequest(generation_id=generation_id), timeout=20)
    generation: pb.Generation = reply.generation
    return generation


async def video(scheduler: Any, generation_id: str) -> tuple[pb.GetVideoResponse, bytes]:
    """Downloads a video. Returns the header message and the mp4."""
    parts = [
        part async for part in scheduler.GetVideo(pb.GetVideoRequest(generation_id=generation_id), timeout=30)
    ]
    return parts[0], b"".join(part.chunk for part in parts[1:])


def kinds(events: list[pb.GenerationEvent]) -> list[str]:
    """Returns the kind of each event."""
    return [event.WhichOneof("event") or "" for event in events]
