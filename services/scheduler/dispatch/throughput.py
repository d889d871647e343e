"""Measured speed of runs, the basis of every estimate of time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from chorus.common.v1 import plan_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

# Weight of the newest run in the moving average.
_NEWEST = 0.3
_MAX_SHAPES = 256

Key = tuple[str, int, int, int]


class Throughput:
    """Moving averages for each model and shape; the least recently updated ones are dropped."""

    def __init__(self) -> None:
        # Seconds per step and seconds of decoding.
        self._known: OrderedDict[Key, tuple[float, float]] = OrderedDict()
        self._job_seconds = 1.0

    @property
    def job_seconds(self) -> float:
        """Mean seconds of a whole job, over all models and shapes."""
        return self._job_seconds

    def seconds_per_step(self, spec: pb.GenerationSpec, model: denoiser_pb2.ModelInfo) -> float:
        """Returns the seconds of a full step, as measured at this shape; 0 if unknown.

        Before the first run at this shape it is the denoiser's figure for the model's default shape.
        """
        known = self._known.get(_key(spec))
        return known[0] if known else model.seconds_per_step

    def full_seconds(self, spec: pb.GenerationSpec, model: denoiser_pb2.ModelInfo) -> float:
        """Returns the seconds of a run that reuses nothing; 0 if unknown."""
        steps = len(spec.schedule.sigmas) - 1
        return steps * self.seconds_per_step(spec, model) + self.decode_seconds(spec)

    def decode_seconds(self, spec: pb.GenerationSpec) -> float:
        """Returns the seconds of decoding at this shape; 0 if unknown."""
        known = self._known.get(_key(spec))
        return known[1] if known else 0.0

    def record(self, spec: pb.GenerationSpec, step: float, decode: float, total: float) -> None:
        """Records a run that has just ended.

        Args:
            step: seconds of a full step.
            decode: seconds of the decoding.
            total: seconds of the whole job since it left the queue.
        """
        key = _key(spec)
        old_step, old_decode = self._known.pop(key, (step, decode))
        self._known[key] = (_average(old_step, step), _average(old_decode, decode))
        if len(self._known) > _MAX_SHAPES:
            self._known.popitem(last=False)
        self._job_seconds = _average(self._job_seconds, total)


def expected_seconds(plan: plan_pb2.Plan, step_seconds: float, decode_seconds: float) -> float:
    """Returns the seconds that a planned run is expected to take on the denoiser; 0 if unknown."""
    if plan.reuse_steps == plan.total_steps:
        return decode_seconds
    return max(0.0, plan.total_steps * step_seconds - plan.predicted_seconds_saved) + decode_seconds


def eta_seconds(steps_left: int, step_seconds: float, decode_seconds: float) -> float:
    """Returns the seconds until the video is ready."""
    return steps_left * step_seconds + decode_seconds


def full_step(steps: Sequence[tuple[float, float]]) -> float | None:
    """Returns the mean seconds of those steps that computed every token once; None if no step did.

    Args:
        steps: seconds and share of tokens computed, of each step.
    """
    full = [seconds for seconds, share in steps if share == 1.0]
    return sum(full) / len(full) if full else None


def seconds_saved(total_steps: int, denoise: float, fetch: float, known_step: float) -> float:
    """Returns the seconds saved against computing every step; negative if the donor cost more than it saved.

    Args:
        total_steps: steps of the schedule; 0 for a run without a donor, which saved nothing.
        denoise: seconds of all steps that were run.
        fetch: seconds spent on fetching the donor's data.
        known_step: seconds of a full step; 0 if unknown.
    """
    if not total_steps or not known_step:
        return 0.0
    return total_steps * known_step - denoise - fetch


def _key(spec: pb.GenerationSpec) -> Key:
    return spec.model_id, spec.shape.frames, spec.shape.height, spec.shape.width


def _average(old: float, new: float) -> float:
    return old + _NEWEST * (new - old)
