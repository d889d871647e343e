"""Converts the replies of a Denoise call to events of its job."""

from __future__ import annotations

from chorus.common.v1 import errors_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.chunks import BlobAssembler, BlobFault
from chorus_rpc.limits import MAX_PREVIEW_BYTES

from services.runtime.logs import get_logger
from services.scheduler.dispatch import throughput
from services.scheduler.dispatch.admission_events import convert_admission
from services.scheduler.dispatch.overrides import warn_field_ignored

log = get_logger("denoise_stream")


class DenoiseStream:
    """Converts the replies of one Denoise call to events of its job. It makes no calls and writes no
    files.

    Args:
        total_steps: steps of the schedule.
        attempt: number of this attempt, from 1.
        decode_seconds: estimated seconds of the decoding, 0 if unknown.
        max_video_bytes: upper bound on the size of the video.
        earlier_steps: number of steps that interrupted attempts computed and this one does not repeat.
        denoiser: address of the denoiser.
        step_previews: whether the request asks for a picture of each step; the first that is missing becomes
            a warning.

    Attributes:
        began: whether the denoiser has replied at all.
        reuse_steps: K1 as it was run, 0 if the donor could not be used or nothing has started yet.
        fetch_seconds: seconds that the denoiser spent on fetching the donor's data.
        steps: seconds and share of tokens computed, of each step that was run.
        resumed: whether the run continues an interrupted one.
        resume_point: state of the run after the latest step; empty if the denoiser sent none with it.
        paused: whether the run has given way to another one.
        completed: the denoiser's summary once the run is complete.
        video_info: header of the video, once it has arrived.
    """

    def __init__(
        self,
        total_steps: int,
        attempt: int,
        decode_seconds: float,
        max_video_bytes: int,
        earlier_steps: int = 0,
        denoiser: str = "",
        step_previews: bool = False,
    ) -> None:
        self.began = False
        self.resumed = False
        self.resume_point = b""
        self.paused = False
        self.reuse_steps = 0
        self.fetch_seconds = 0.0
        self.steps: list[tuple[float, float]] = []
        self.completed: denoiser_pb2.Completed | None = None
        self.video_info: video_pb2.VideoInfo | None = None
        self._total_steps = total_steps
        self._attempt = attempt
        self._decode_seconds = decode_seconds
        self._max_video_bytes = max_video_bytes
        self._earlier_steps = earlier_steps
        self._denoiser = denoiser
        self._step_previews = step_previews
        self._preview_missed = False
        self._video: BlobAssembler | None = None

    def convert(self, reply: denoiser_pb2.DenoiseResponse) -> list[pb.GenerationEvent]:
        """Returns the events that follow from one reply. Raises BlobFault if the video is out of order."""
        self.began = True
        match reply.WhichOneof("event"):
            case "started":
                return self._convert_started(reply.started)
            case "step_completed":
                self.resume_point = reply.step_completed.resume_point
                return [self._convert_step(reply.step_completed), *self._check_preview(reply.step_completed)]
            case "video_header":
                self.video_info = reply.video_header
                self._video = BlobAssembler(
                    self.video_info.size_bytes,
                    self.video_info.digest,
                    self._max_video_bytes,
                    "CHORUS_SCHEDULER_MAX_VIDEO_BYTES",
                )
            case "video_chunk":
                if self._video is None:
                    raise BlobFault("a chunk came before the header")
                self._video.add(reply.video_chunk)
            case "paused":
                self.paused = True
            case "completed":
                self.completed = reply.completed
            case "admission":
                return convert_admission(reply.admission)
            case _:
                pass
        return []

    def finish_video(self) -> tuple[video_pb2.VideoInfo, bytes]:
        """Returns the complete video and releases it. Raises BlobFault unless it matches its header."""
        if self._video is None or self.video_info is None:
            raise BlobFault("the run was reported complete before any video came")
        data = self._video.finish()
        self._video = None
        return self.video_info, data

    def _convert_started(self, started: denoiser_pb2.Started) -> list[pb.GenerationEvent]:
        self.reuse_steps = started.reuse_steps
        self.fetch_seconds = started.fetch_seconds
        self.resumed = started.resumed_step > 0
        event = pb.StartedEvent(
            reuse_steps=started.reuse_steps,
            total_steps=started.total_steps,
            attempt=self._attempt,
            host_adapter=started.host_adapter,
            denoiser=self._denoiser,
            resumed_step=started.resumed_step,
            earlier_steps=self._earlier_steps if self.resumed else 0,
        )
        if started.HasField("donor"):
            event.donor.CopyFrom(started.donor)
        events = [pb.GenerationEvent(started=event)]
        if started.HasField("degraded"):
            log.warning("donor not used", error=started.degraded.message)
            warning = errors_pb2.JobError()
            warning.CopyFrom(started.degraded)
            if "service" not in warning.metadata:
                warning.metadata["service"] = "cache"
            events.append(pb.GenerationEvent(warning=pb.WarningEvent(warning=warning)))
        return events

    def _convert_step(self, step: denoiser_pb2.StepCompleted) -> pb.GenerationEvent:
        self.steps.append((step.seconds, step.computed_share))
        mean_seconds = sum(seconds for seconds, _ in self.steps) / len(self.steps)
        return pb.GenerationEvent(
            step_completed=pb.StepCompletedEvent(
                step=step.step,
                total_steps=self._total_steps,
                seconds=step.seconds,
                eta_seconds=throughput.eta_seconds(
                    self._total_steps - step.step.index, mean_seconds, self._decode_seconds
                ),
                computed_share=step.computed_share,
                active_tokens=step.active_tokens,
                token_grid=step.token_grid,
                backend=step.backend,
                fallback=step.fallback,
                draft=step.draft,
                preview=step.preview if _has_preview(step) else b"",
            )
        )

    def _check_preview(self, step: denoiser_pb2.StepCompleted) -> list[pb.GenerationEvent]:
        """Returns the warning about the first requested picture that is missing, as an event."""
        if not self._step_previews or self._preview_missed or _has_preview(step):
            return []
        self._preview_missed = True
        cause = step.preview_fault or "the denoiser sent none"
        if step.preview:
            cause = f"it has {len(step.preview)} bytes; the bound is {MAX_PREVIEW_BYTES}"
        warning = warn_field_ignored(
            "spec.step_previews", f"step {step.step.index} has no picture, nor may later ones: {cause}"
        )
        return [pb.GenerationEvent(warning=pb.WarningEvent(warning=warning))]


def _has_preview(step: denoiser_pb2.StepCompleted) -> bool:
    return 0 < len(step.preview) <= MAX_PREVIEW_BYTES
