"""Answers of the public API, built from jobs and models."""

from __future__ import annotations

from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.scheduler.jobs.states import count_time
from services.scheduler.jobs.store import Job


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


def view_job(job: Job, position: int) -> pb.Generation:
    """Returns a job as clients see it, at a position of the queue; 0: it does not wait."""
    generation = pb.Generation()
    generation.CopyFrom(job.generation)
    generation.queue_position = position
    # Generations that were accepted before requests had several outputs have no numbers.
    generation.output_index = generation.output_index or 1
    generation.output_count = generation.output_count or 1
    now = Timestamp()
    now.GetCurrentTime()
    count_time(generation, now)
    return generation
