"""How fast runs were, measured: what estimates are made from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from chorus.denoiser.v1 import denoiser_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

# Weight of the newest run in the moving average.
_NEWEST = 0.3
_MAX_SHAPES = 256

Key = tuple[str, int, int, int]


class Throughput:
    """Moving averages for each model and shape; the least recently used are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, tuple[float, float]] = OrderedDict()
        self._job_seconds = 1.0

    @property
    def job_seconds(self) -> float:
        """Of a whole job, whatever its kind."""
        return self._job_seconds

    def seconds_per_step(self, spec: pb.GenerationSpec, model: denoiser_pb2.ModelInfo) -> float:
        """At this shape as measured here, or else at the default shape as the denoiser says; 0 if unknown."""
        known = self._known.get(_key(spec))
        return known[0] if known else model.seconds_per_step

    def decode_seconds(self, spec: pb.GenerationSpec) -> float:
        known = self._known.get(_key(spec))
        return known[1] if known else 0.0

    def note(self, spec: pb.GenerationSpec, step: float, decode: float, total: float) -> None:
        """Seconds per step, of the decoding, and of the whole run that has just ended."""
        key = _key(spec)
        old_step, old_decode = self._known.pop(key, (step, decode))
        self._known[key] = (_mean(old_step, step), _mean(old_decode, decode))
        if len(self._known) > _MAX_SHAPES:
            self._known.popitem(last=False)
        self._job_seconds = _mean(self._job_seconds, total)


def eta_seconds(steps_left: int, step_seconds: float, decode_seconds: float) -> float:
    """Until the video is ready."""
    return steps_left * step_seconds + decode_seconds


def full_step(steps: Sequence[tuple[float, float]]) -> float | None:
    """Mean seconds of the steps that computed every token, once; None without any.

    Args:
        steps: seconds and the share of tokens computed.
    """
    full = [seconds for seconds, share in steps if share == 1.0]
    return sum(full) / len(full) if full else None


def seconds_saved(total_steps: int, denoise: float, fetch: float, known_step: float) -> float:
    """Against computing every step. Negative when the donor cost more than it gave.

    Args:
        total_steps: 0 for a run without a donor, which saved nothing.
        denoise: seconds of all steps that were run.
        fetch: seconds spent on getting what the donor gave.
        known_step: seconds of a full step; 0 if unknown.
    """
    if not total_steps or not known_step:
        return 0.0
    return total_steps * known_step - denoise - fetch


def _key(spec: pb.GenerationSpec) -> Key:
    return spec.model_id, spec.shape.frames, spec.shape.height, spec.shape.width


def _mean(old: float, new: float) -> float:
    return old + _NEWEST * (new - old)
