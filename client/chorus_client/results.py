"""Results of the client: frozen values, read from the contract's messages.

`proto` is the message that a value was read from: the raw protobuf, for fields that the value does not carry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from chorus.common.v1 import plan_pb2, video_pb2
from chorus.common.v1.errors_pb2 import JobError
from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, reason_name
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from chorus_client.files import write_atomically
from chorus_client.problem_reports import ProblemReport
from chorus_client.states import FINAL, PriorityName, State, format_priority, format_state


@dataclass(frozen=True)
class Donor:
    """Earlier request whose latents a generation reuses.

    Attributes:
        entry_id: id of its cache entry.
        generation_id: id of its generation; empty if the entry does not record it.
        prompt: prompt of that request; empty if the entry keeps only a hash.
        score: cosine similarity of the two prompts, −1 to 1.
    """

    entry_id: str
    generation_id: str
    prompt: str
    score: float

    @classmethod
    def from_proto(cls, message: plan_pb2.DonorRef) -> Self:
        return cls(message.entry_id, message.generation_id, message.prompt, message.score)


@dataclass(frozen=True)
class PassedOver:
    """Donor that was found and not reused.

    Attributes:
        generation_id: generation whose latents it holds; may be empty.
        score: similarity of the two prompts, −1 to 1.
        prompt: at most its first 200 characters.
        edit: kind of edit from its prompt to the target's; empty if the prompts were not compared.
        reason: why another donor or none was preferred, in words.
    """

    generation_id: str
    score: float
    prompt: str
    edit: str
    reason: str

    @classmethod
    def from_proto(cls, message: plan_pb2.PassedOver) -> Self:
        return cls(message.generation_id, message.score, message.prompt, message.edit, message.reason)


@dataclass(frozen=True)
class Plan:
    """Decision of the scheduler on how to compute a generation.

    Attributes:
        total_steps: denoising steps of the schedule.
        reuse_steps: leading steps taken from the donor instead of computed; 0 on a miss, all of them for an
            exact repeat of the donor's request.
        region_end: end of the steps from `reuse_steps` on that compute only a region; 0 for none.
        renoised: whether the run starts from the donor's clean latents, noised again.
        draft_step: step that is computed first, as a draft that is noised again to the level of
            `reuse_steps`; 0 without a draft.
        donor: donor of the plan; None on a miss.
        edit: kind of edit that leads from the donor's prompt to this one, such as "colour"; may be empty.
        reasons: sentences that explain the decision.
        predicted_seconds_saved: predicted saving against computing every step, in seconds.
        predicted_drift_points: predicted increase, against full computation, of the share of results that
            follow the donor, in percentage points.
        passed_over: other donors that were found, the most similar first.
    """

    total_steps: int
    reuse_steps: int
    region_end: int
    renoised: bool
    draft_step: int
    donor: Donor | None
    edit: str
    reasons: tuple[str, ...]
    predicted_seconds_saved: float
    predicted_drift_points: float
    passed_over: tuple[PassedOver, ...]
    proto: plan_pb2.Plan = field(repr=False, compare=False)

    @classmethod
    def from_proto(cls, message: plan_pb2.Plan) -> Self:
        return cls(
            total_steps=message.total_steps,
            reuse_steps=message.reuse_steps,
            region_end=message.region_end,
            renoised=message.renoised,
            draft_step=message.draft_step,
            donor=Donor.from_proto(message.donor) if message.HasField("donor") else None,
            edit=message.edit,
            reasons=tuple(reason.text for reason in message.reasons),
            predicted_seconds_saved=message.predicted_seconds_saved,
            predicted_drift_points=message.predicted_drift_points,
            passed_over=tuple(map(PassedOver.from_proto, message.passed_over)),
            proto=message,
        )


@dataclass(frozen=True)
class Problem:
    """Cause of a failure, of a wait, or of reuse that was lost.

    Attributes:
        reason: name of the contract's ErrorReason, for instance "DEPENDENCY_UNAVAILABLE".
        message: description of the cause, one sentence.
        metadata: machine-readable facts, such as the name of a service.
    """

    reason: str
    message: str
    metadata: Mapping[str, str]

    @classmethod
    def from_proto(cls, message: JobError) -> Self:
        facts = MappingProxyType(dict(message.metadata))
        return cls(reason_name(message.reason), message.message, facts)


@dataclass(frozen=True)
class Timings:
    """Duration of each part of a generation, in seconds.

    Attributes:
        queued_seconds: from submission to the start of the last attempt; includes earlier attempts.
        lookup_seconds: look-up of donors, comparison of the prompts, and planning.
        total_seconds: from the start of the last attempt to the complete video.
        running_seconds: time in which runs were under way on the denoiser, over all attempts; so far, until
            the generation ends.
        waiting_seconds: all other time: in the queue, for a service, and in the preparation of runs.
    """

    queued_seconds: float
    embed_seconds: float
    lookup_seconds: float
    fetch_seconds: float
    denoise_seconds: float
    decode_seconds: float
    total_seconds: float
    running_seconds: float = 0.0
    waiting_seconds: float = 0.0

    @classmethod
    def from_proto(cls, message: scheduler_pb2.Timings) -> Self:
        return cls(**_scalars(cls, message))


@dataclass(frozen=True)
class VideoInfo:
    """Properties of an encoded video.

    Attributes:
        height, width: size of the encoded frames, in pixels; small videos are enlarged for display.
        digest: SHA-256 of the file, lower-case hex.
    """

    media_type: str
    size_bytes: int
    digest: str
    frames: int
    height: int
    width: int
    frames_per_second: float

    @classmethod
    def from_proto(cls, message: video_pb2.VideoInfo) -> Self:
        return cls(**_scalars(cls, message))


@dataclass(frozen=True)
class Generation:
    """State of a generation when it was read.

    Attributes:
        id: generation id.
        request_id: id that the submission carried.
        prompt, model, seed: accepted values, with the server's defaults filled in.
        queue_position: position in the queue, 1 is next; 0 when not queued.
        plan: plan of the generation; None until planned.
        donor: donor whose latents were used; None on a miss.
        steps_run: denoising steps that were computed.
        steps_completed: denoising steps completed, reused ones included.
        attempts: number of starts; above 1 if a service died during the run, or it was paused.
        warnings: conditions that prevented reuse, or the storing of the latents, but not the video, and
            fields of the request without effect.
        error: cause of the failure; None unless failed.
        video: properties of the video; None unless succeeded.
        created, started, ended: times in UTC. `started` is the start of the latest run, None while there is
            none; `ended` is None until the generation ends.
        labels, output_count, output_index: labels and outputs of its request; its number among them, from 1.
        last_sequence: sequence number of the newest event.
        trace_id: id of the trace, 32 hex digits; empty without tracing.
        denoiser: address of the denoiser of the last run, as the scheduler reaches it; empty before it.
        seconds_saved: time saved against computing every step at the same pace; 0 until it succeeds.
        priority: class in the order of the queue, as it is now: "low", "normal" or "high".
        predicted_start: time at which it is expected to start, in UTC; None if it is not queued, or the
            durations of the runs before it are not known.
        report: what a user found wrong with its video; None without a report.
    """

    id: str
    request_id: str
    prompt: str
    model: str
    seed: int
    state: State
    queue_position: int
    plan: Plan | None
    donor: Donor | None
    steps_run: int
    steps_completed: int
    attempts: int
    warnings: tuple[Problem, ...]
    error: Problem | None
    video: VideoInfo | None
    timings: Timings
    created: datetime
    started: datetime | None
    ended: datetime | None
    last_sequence: int
    trace_id: str
    labels: Mapping[str, str]
    output_index: int
    output_count: int
    denoiser: str
    seconds_saved: float
    priority: PriorityName
    predicted_start: datetime | None
    report: ProblemReport | None
    proto: scheduler_pb2.Generation = field(repr=False, compare=False)

    @property
    def hit(self) -> bool:
        """Whether latents of an earlier request were reused."""
        return self.donor is not None

    @property
    def exact(self) -> bool:
        """Whether it repeats the full computation of the same prompt and seed, without computing a step."""
        return self.hit and self.plan is not None and self.plan.reuse_steps == self.plan.total_steps

    @property
    def done(self) -> bool:
        """Whether it succeeded, failed or was cancelled."""
        return self.state in FINAL

    def raise_for_state(self) -> None:
        """Raises GenerationFailed or GenerationCancelled if it ended without a video."""
        if self.state == "failed":
            raise GenerationFailed(self)
        if self.state == "cancelled":
            raise GenerationCancelled(self)

    @classmethod
    def from_proto(cls, message: scheduler_pb2.Generation) -> Self:
        return cls(
            id=message.generation_id,
            request_id=message.request_id,
            prompt=message.spec.prompt,
            model=message.spec.model_id,
            seed=message.spec.seed,
            state=format_state(message.state),
            queue_position=message.queue_position,
            plan=Plan.from_proto(message.plan) if message.HasField("plan") else None,
            donor=Donor.from_proto(message.donor) if message.HasField("donor") else None,
            steps_run=message.steps_run,
            steps_completed=message.steps_completed,
            attempts=message.attempts,
            warnings=_problems(message.warnings),
            error=Problem.from_proto(message.error) if message.HasField("error") else None,
            video=VideoInfo.from_proto(message.video) if message.HasField("video") else None,
            timings=Timings.from_proto(message.timings),
            created=to_utc(message.create_time),
            started=to_utc(message.start_time) if message.HasField("start_time") else None,
            ended=to_utc(message.end_time) if message.HasField("end_time") else None,
            last_sequence=message.last_sequence,
            trace_id=message.trace_id,
            labels=MappingProxyType(dict(message.spec.labels)),
            output_index=message.output_index or 1,
            output_count=message.output_count or 1,
            denoiser=message.denoiser,
            seconds_saved=message.seconds_saved,
            priority=format_priority(message.spec.priority),
            predicted_start=(
                to_utc(message.predicted_start_time) if message.HasField("predicted_start_time") else None
            ),
            report=ProblemReport.from_proto(message.report) if message.HasField("report") else None,
            proto=message,
        )


@dataclass(frozen=True)
class Video:
    """Result of a generation that succeeded.

    Attributes:
        generation: final state of the generation.
        data: the mp4 file.
        seconds_saved: time saved against computing every step at the same pace, in seconds; 0 on a miss.
    """

    generation: Generation
    data: bytes = field(repr=False)
    seconds_saved: float

    @property
    def hit(self) -> bool:
        """Whether latents of an earlier request were reused."""
        return self.generation.hit

    @property
    def donor(self) -> Donor | None:
        """Donor that was used; None on a miss."""
        return self.generation.donor

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Conditions that prevented reuse but not the video, such as an unavailable cache."""
        return self.generation.warnings

    def save(self, path: Path | str) -> Path:
        """Writes the mp4 file atomically. Returns its path. Raises OSError."""
        return write_atomically(Path(path), self.data)


class GenerationError(ChorusError):
    """End of a generation without a video. Base of GenerationFailed and GenerationCancelled."""

    def __init__(
        self, generation: Generation, reason: errors.Reason, message: str, metadata: Mapping[str, str]
    ) -> None:
        super().__init__(reason, message, metadata=metadata)
        self.generation = generation


class GenerationFailed(GenerationError):
    """Failure of a generation; `reason` and `message` are those of its error."""

    def __init__(self, generation: Generation) -> None:
        fault = generation.proto.error
        super().__init__(
            generation,
            fault.reason or errors.INTERNAL,
            f"{generation.id} failed: {fault.message or 'the server gave no reason'}",
            dict(fault.metadata),
        )


class GenerationCancelled(GenerationError):
    """Cancellation of a generation, by this or another client."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation, errors.CANCELLED, f"{generation.id} was cancelled", {})


def _problems(messages: Iterable[JobError]) -> tuple[Problem, ...]:
    return tuple(Problem.from_proto(message) for message in messages)


def _scalars(cls: type, message: Message) -> dict[str, Any]:
    """Returns the fields of `message` by the names of a dataclass that has no others."""
    return {field.name: getattr(message, field.name) for field in fields(cls)}


def to_utc(moment: Timestamp) -> datetime:
    """Returns the timestamp as a datetime in UTC."""
    return moment.ToDatetime(tzinfo=UTC)
