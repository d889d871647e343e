"""What a scheduler offers before anything is submitted: its models, and the plan of a request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from chorus.common.v1 import video_pb2
from chorus.scheduler.v1 import scheduler_pb2

from chorus_client.results import Plan, Problem


@dataclass(frozen=True)
class Range:
    """Valid values of a field: `min`, `min + multiple` and so on, up to and including `max`."""

    min: int
    max: int
    multiple: int

    @classmethod
    def from_proto(cls, message: video_pb2.Bound) -> Self:
        return cls(message.min, message.max, message.multiple)


@dataclass(frozen=True)
class Model:
    """A model that a request can name.

    Attributes:
        frames, height, width: valid sizes of a video, in frames and pixels.
        steps: valid numbers of denoising steps.
        default_shape: frames, height and width if a request states none.
        default_sigmas: noise levels if a request states neither `steps` nor `sigmas`.
        max_text_tokens: tokens of a prompt that the model reads; 0 if unknown.
        seconds_per_step: time of a step at the default shape; 0 if unknown.
        frames_per_second: rate of its videos; 0 if unknown.
    """

    id: str
    frames: Range
    height: Range
    width: Range
    steps: Range
    default_shape: tuple[int, int, int]
    default_sigmas: tuple[float, ...]
    max_text_tokens: int
    seconds_per_step: float
    frames_per_second: float
    proto: scheduler_pb2.Model = field(repr=False, compare=False)

    @classmethod
    def from_proto(cls, message: scheduler_pb2.Model) -> Self:
        shape = message.default_shape
        return cls(
            id=message.model_id,
            frames=Range.from_proto(message.frames),
            height=Range.from_proto(message.height),
            width=Range.from_proto(message.width),
            steps=Range.from_proto(message.steps),
            default_shape=(shape.frames, shape.height, shape.width),
            default_sigmas=tuple(message.default_schedule.sigmas),
            max_text_tokens=message.max_text_tokens,
            seconds_per_step=message.seconds_per_step,
            frames_per_second=message.frames_per_second,
            proto=message,
        )


@dataclass(frozen=True)
class Preview:
    """What a request would reuse, and how long it would take, if it were submitted now.

    Attributes:
        seed: seed that is in force: the stated one, the donor's, or one that was drawn for this preview.
        run_seconds: expected time on the denoiser; 0 if the speed of the model is unknown.
        queue_seconds: expected time in the queue.
        warnings: warnings that the generation would have.
    """

    plan: Plan
    model: str
    seed: int
    run_seconds: float
    queue_seconds: float
    warnings: tuple[Problem, ...]
    proto: scheduler_pb2.PreviewPlanResponse = field(repr=False, compare=False)

    @classmethod
    def from_proto(cls, message: scheduler_pb2.PreviewPlanResponse) -> Self:
        plan = message.plan
        return cls(
            plan=Plan.from_proto(plan),
            model=message.spec.model_id,
            seed=plan.seed if plan.HasField("seed") else message.spec.seed,
            run_seconds=message.run_seconds,
            queue_seconds=message.queue_seconds,
            warnings=tuple(map(Problem.from_proto, message.warnings)),
            proto=message,
        )
