"""Runs that were interrupted at a step, kept in memory so that another attempt continues them.

The job database does not have them: a run whose scheduler ends starts again from its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from chorus.denoiser.v1 import denoiser_pb2

from services.scheduler.dispatch.preparation import Prepared

# Bound on the rest of the message that has a resume point: the mask of the step has one bit per token.
_ENVELOPE_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class UnfinishedRun:
    """What is known of a run after the latest step of which the denoiser sent its resume point.

    Attributes:
        request: request that continues the run.
        steps_run: number of steps that were computed.
        denoise_seconds: seconds of these steps.
        fetch_seconds: seconds that the denoiser spent on fetching the donor's data.
    """

    prepared: Prepared
    request: denoiser_pb2.DenoiseRequest
    steps_run: int
    denoise_seconds: float
    fetch_seconds: float

    @property
    def size_bytes(self) -> int:
        return self.request.ByteSize()


class UnfinishedRuns:
    """Unfinished runs by job id, within a number of bytes; the one that was kept first is dropped first.

    Args:
        max_bytes: upper bound on the requests that are kept, in bytes; 0 keeps none.
        max_message_bytes: upper bound on a message of the denoiser, in bytes.

    Attributes:
        max_point_bytes: upper bound on a resume point, in bytes; 0 if runs are not kept.
    """

    def __init__(self, max_bytes: int, max_message_bytes: int) -> None:
        self.max_point_bytes = max(0, min(max_bytes, max_message_bytes - _ENVELOPE_BYTES))
        self._max_bytes = max_bytes
        self._bytes = 0
        self._runs: dict[str, UnfinishedRun] = {}

    def keep(self, job_id: str, run: UnfinishedRun) -> None:
        """Replaces what is kept of a job. A run that is larger than the bound is not kept."""
        self.discard(job_id)
        if run.size_bytes > self._max_bytes:
            return
        self._runs[job_id] = run
        self._bytes += run.size_bytes
        while self._bytes > self._max_bytes:
            self.discard(next(iter(self._runs)))

    def find(self, job_id: str) -> UnfinishedRun | None:
        """Returns what is kept of a job."""
        return self._runs.get(job_id)

    def discard(self, job_id: str) -> None:
        """Forgets a job."""
        run = self._runs.pop(job_id, None)
        if run is not None:
            self._bytes -= run.size_bytes
