"""Events of a job about the admission of its latents to the cache."""

from __future__ import annotations

from chorus.common.v1 import errors_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors

from services.runtime.logs import get_logger

log = get_logger("admission_events")


def convert_admission(admission: denoiser_pb2.Admission) -> list[pb.GenerationEvent]:
    return _make_admission_warning(admission.error) if admission.HasField("error") else []


def _make_admission_warning(error: errors_pb2.JobError) -> list[pb.GenerationEvent]:
    """Returns the warning that the latents were not stored."""
    log.warning("latents not admitted to the cache", error=error.message)
    warning = errors_pb2.JobError()
    warning.CopyFrom(error)
    warning.message = f"the latents were not stored for later requests: {error.message}"
    if "service" not in warning.metadata:
        warning.metadata["service"] = "cache"
    return [pb.GenerationEvent(warning=pb.WarningEvent(warning=warning))]


def make_unknown_admission_warning() -> pb.GenerationEvent:
    """Returns the warning of a stream that ended early, whether by its time limit or with the denoiser."""
    cause = errors.unavailable("denoiser", "its stream ended before the outcome of the admission")
    warning = errors.to_job_error(cause)
    warning.message = f"it is not known whether the latents were stored for later requests: {cause.message}"
    return pb.GenerationEvent(warning=pb.WarningEvent(warning=warning))
