"""Metrics of the denoiser: the steps of its runs."""

from __future__ import annotations

from chorus_rpc import semconv

from services.denoiser.reuse.stages import Step
from services.runtime.metrics import METER, create_histogram

_STEPS = METER.create_counter(
    semconv.METRIC_STEPS,
    "{step}",
    "Steps of runs: reused, computed in whole or in a region, or computed as a draft.",
)
_STEP_SECONDS = create_histogram(semconv.METRIC_STEP, "Duration of a computed step on the device.")


def record_reused_steps(model_id: str, count: int) -> None:
    """Counts the steps that a run takes from its donor.

    Args:
        model_id: id of a loaded model.
    """
    _STEPS.add(count, {semconv.MODEL: model_id, semconv.KIND: "reused"})


def record_step(model_id: str, step: Step) -> None:
    """Measures a step that a run computed."""
    kind = "draft" if step.draft else "whole" if step.active is None else "region"
    attributes = {semconv.MODEL: model_id, semconv.KIND: kind}
    _STEPS.add(1, attributes)
    _STEP_SECONDS.record(step.seconds, {**attributes, semconv.STEP_BACKEND: step.backend.backend})
