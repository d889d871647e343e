"""Events of a generation: frozen values, read from the contract's messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Self, TypeAlias

from chorus.common.v1.errors_pb2 import JobError
from chorus.scheduler.v1 import scheduler_pb2

from chorus_client.results import Plan, Problem, to_utc
from chorus_client.states import FINAL

EventKind: TypeAlias = Literal[
    "queued",
    "waiting",
    "paused",
    "planned",
    "started",
    "step_completed",
    "warning",
    "succeeded",
    "failed",
    "cancelled",
    "unknown",
]


@dataclass(frozen=True)
class Step:
    """Denoising step that completed.

    Attributes:
        number: position of the step in the schedule, 1 to `total_steps`.
        seconds: duration of the step, in seconds.
        eta_seconds: estimated time until the video is ready, in seconds.
        computed_share: share of the tokens that went through the model, 0 to 1.
        backend: backend that computed the step; may be empty.
        fallback: reason why the configured backend did not compute it; empty if it did.
        draft: whether it computed the draft that the run starts from.
        preview: middle frame of the clean video as the step estimates it, a JPEG file of at most 128 pixels
            and 16 KiB; empty unless the request has `step_previews`.
    """

    number: int
    total_steps: int
    seconds: float
    eta_seconds: float
    computed_share: float
    backend: str
    fallback: str
    draft: bool
    preview: bytes = field(repr=False)

    @classmethod
    def from_proto(cls, message: scheduler_pb2.StepCompletedEvent) -> Self:
        share = message.computed_share
        return cls(
            number=message.step.index,
            total_steps=message.total_steps,
            seconds=message.seconds,
            eta_seconds=message.eta_seconds,
            # 0 without active tokens: a server that does not report the share.
            computed_share=share if share or message.active_tokens else 1.0,
            backend=message.backend,
            fallback=message.fallback,
            draft=message.draft,
            preview=message.preview,
        )


@dataclass(frozen=True)
class Event:
    """Change of a generation. Attributes that do not belong to its `kind` are None.

    Attributes:
        sequence: number of the event, from 1, without gaps.
        time: time of the event, in UTC.
        queue_position: position in the queue, 1 is next; set for "queued".
        plan: plan of the generation; set for "planned".
        attempt: number of the attempt, from 1; set for "started".
        resumed_step: step that an interrupted attempt had reached and after which this one continues, 0 if it
            starts from its beginning; set for "started".
        step: completed step; set for "step_completed".
        problem: cause; set for "waiting", "warning" and "failed".
        seconds_saved: time saved against computing every step at the same pace, in seconds; set for
            "succeeded".
    """

    sequence: int
    time: datetime
    kind: EventKind
    queue_position: int | None
    plan: Plan | None
    attempt: int | None
    resumed_step: int | None
    step: Step | None
    problem: Problem | None
    seconds_saved: float | None
    proto: scheduler_pb2.GenerationEvent = field(repr=False, compare=False)

    @property
    def last(self) -> bool:
        """Whether the generation ended with this event."""
        return self.kind in FINAL

    @classmethod
    def from_proto(cls, message: scheduler_pb2.GenerationEvent) -> Self:
        kind = message.WhichOneof("event")
        problem: JobError | None = None
        if kind == "waiting":
            problem = message.waiting.cause
        elif kind == "warning":
            problem = message.warning.warning
        elif kind == "failed":
            problem = message.failed.error
        return cls(
            sequence=message.sequence,
            time=to_utc(message.time),
            kind=kind or "unknown",
            queue_position=message.queued.queue_position if kind == "queued" else None,
            plan=Plan.from_proto(message.planned.plan) if kind == "planned" else None,
            attempt=message.started.attempt if kind == "started" else None,
            resumed_step=message.started.resumed_step if kind == "started" else None,
            step=Step.from_proto(message.step_completed) if kind == "step_completed" else None,
            problem=None if problem is None else Problem.from_proto(problem),
            seconds_saved=message.succeeded.seconds_saved if kind == "succeeded" else None,
            proto=message,
        )
