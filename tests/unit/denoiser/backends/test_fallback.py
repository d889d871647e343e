"""Verifies which backend runs a step when the configured one cannot, and how that is reported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from services.denoiser.backends.base import Backend, BackendError, StepInputs, StepReport
from services.denoiser.backends.fallback import Fallback, Unavailable
from services.denoiser.network.text import AmplifiedText

ONE = torch.ones(1)


class Fake(Backend):
    """Predicts a fixed number, or rejects steps with a reason, or fails."""

    def __init__(self, name: str, number: float, reason: str | None = None, fails: bool = False) -> None:
        self._name, self.number, self.reason, self.fails = name, number, reason, fails
        self.calls = 0
        self.closed = False

    @property
    def name(self) -> str:
        return self._name

    def unsupported_reason(self, inputs: StepInputs) -> str | None:
        return self.reason

    def predict(self, inputs: StepInputs) -> Tensor:
        self.calls += 1
        if self.fails:
            raise BackendError("out of memory")
        return self.number * ONE

    def close(self) -> None:
        self.closed = True


STEP = StepInputs(ONE, ONE, ONE, AmplifiedText(()), ONE)


def test_primary_runs_supported_steps() -> None:
    both = Fallback(Fake("tensorrt", 1), Fake("torch", 2), allowed=True)
    assert float(both.predict(STEP)) == 1
    assert both.drain() == StepReport("tensorrt")
    assert both.name == "tensorrt"
    assert both.fallback_steps == 0


def test_secondary_runs_unsupported_steps_and_every_step_reports_the_reason() -> None:
    primary = Fake("tensorrt", 1, reason="600 tokens, outside 1 to 576")
    both = Fallback(primary, Fake("torch", 2), allowed=True)
    assert both.unsupported_reason(STEP) is None
    for _ in range(2):
        assert float(both.predict(STEP)) == 2
        assert both.drain() == StepReport("torch", "600 tokens, outside 1 to 576")
    assert primary.calls == 0
    assert both.fallback_steps == 2
    primary.reason = None
    assert float(both.predict(STEP)) == 1
    assert both.drain() == StepReport("tensorrt")


def test_primary_is_not_called_again_after_a_failure() -> None:
    primary = Fake("tensorrt", 1, fails=True)
    both = Fallback(primary, Fake("torch", 2), allowed=True)
    for _ in range(3):
        assert float(both.predict(STEP)) == 2
        assert both.drain() == StepReport("torch", "out of memory")
    assert primary.calls == 1
    assert both.fallback_steps == 3


def test_unsupported_steps_raise_if_fallback_is_disabled() -> None:
    both = Fallback(Fake("tensorrt", 1, reason="too many tokens"), Fake("torch", 2), allowed=False)
    assert both.unsupported_reason(STEP) == "too many tokens"
    with pytest.raises(
        BackendError, match="tensorrt cannot run this step: too many tokens; allow torch with"
    ):
        both.predict(STEP)
    with pytest.raises(BackendError, match="out of memory"):
        Fallback(Fake("tensorrt", 1, fails=True), Fake("torch", 2), allowed=False).predict(STEP)
    assert both.fallback_steps == 0


def test_unavailable_backend_reports_its_reason() -> None:
    both = Fallback(Unavailable("tensorrt", "no CUDA device"), Fake("torch", 2), allowed=True)
    assert float(both.predict(STEP)) == 2
    assert both.drain() == StepReport("torch", "no CUDA device")
    with pytest.raises(BackendError, match="no CUDA device"):
        Unavailable("tensorrt", "no CUDA device").predict(STEP)


def test_close_closes_both_backends() -> None:
    primary, secondary = Fake("tensorrt", 1), Fake("torch", 2)
    Fallback(primary, secondary, allowed=True).close()
    assert primary.closed
    assert secondary.closed
