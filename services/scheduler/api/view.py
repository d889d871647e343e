"""Answers of the public API, built from jobs and models."""

from __future__ import annotations

from collections.abc import Sequence

from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.scheduler.dispatch.start_times import StartTimes
from services.scheduler.jobs.deadline import make_timestamp
from services.scheduler.jobs.states import IN_QUEUE, State, count_time
from services.scheduler.jobs.store import Job, JobStore


def describe_model(model: denoiser_pb2.ModelInfo) -> pb.Model:
    """Returns a model as clients see it."""
    return pb.Model(
        model_id=model.model_id,
        frames=model.frames,
        height=model.height,
        width=model.width,
        steps=model.steps,
        default_shape=model.default_shape,
        default_schedule=model.default_schedule,
        max_text_tokens=model.max_text_tokens,
        seconds_per_step=model.seconds_per_step,
        frames_per_second=model.frames_per_second,
    )


def view_job(job: Job, position: int, start: float | None = None) -> pb.Generation:
    """Returns a job as clients see it.

    Args:
        position: position in the queue, from 1; 0: it does not wait.
        start: time at which it is expected to start, in Unix seconds; None if that is not known.
    """
    generation = pb.Generation()
    generation.CopyFrom(job.generation)
    generation.queue_position = position
    if start is not None and position and job.state is State.QUEUED:
        generation.predicted_start_time.CopyFrom(make_timestamp(start))
    # Generations that were accepted before requests had several outputs have no numbers.
    generation.output_index = generation.output_index or 1
    generation.output_count = generation.output_count or 1
    now = Timestamp()
    now.GetCurrentTime()
    count_time(generation, now)
    return generation


class Views:
    """Jobs as clients see them now."""

    def __init__(self, store: JobStore, start_times: StartTimes) -> None:
        self._store = store
        self._start_times = start_times

    async def one(self, job: Job) -> pb.Generation:
        [view] = await self.all([job])
        return view

    async def all(self, jobs: Sequence[Job]) -> list[pb.Generation]:
        positions = await self._store.positions([job.job_id for job in jobs if job.state in IN_QUEUE])
        starts = await self._start_times.find() if positions else {}
        return [view_job(job, positions.get(job.job_id, 0), starts.get(job.job_id)) for job in jobs]
