"""Who runs a step when the wanted backend cannot, and how that is told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from services.denoiser.backends.base import Backend, BackendError, StepInputs, StepReport
from services.denoiser.backends.fallback import Fallback, Unavailable
from services.denoiser.network.text import AmplifiedText

ONE = torch.ones(1)


class Fake(Backend):
    """Predicts its own number; refuses or fails as told."""

    def __init__(self, name: str, number: float, refuses: str | None = None, fails: bool = False) -> None:
        self._name, self.number, self.refuses, self.fails = name, number, refuses, fails
        self.asked = 0
        self.closed = False

    @property
    def name(self) -> str:
        return self._name

    def unsupported(self, inputs: StepInputs) -> str | None:
        return self.refuses

    def predict(self, inputs: StepInputs) -> Tensor:
        self.asked += 1
        if self.fails:
            raise BackendError("out of memory")
        return self.number * ONE

    def close(self) -> None:
        self.closed = True


STEP = StepInputs(ONE, ONE, ONE, AmplifiedText(()), ONE)


def test_the_first_runs_what_it_can() -> None:
    both = Fallback(Fake("tensorrt", 1), Fake("torch", 2), allowed=True)
    assert float(both.predict(STEP)) == 1
    assert both.drain() == StepReport("tensorrt")
    assert both.name == "tensorrt"
    assert both.fallback_steps == 0


def test_what_it_cannot_the_second_runs_and_every_step_tells() -> None:
    first = Fake("tensorrt", 1, refuses="600 tokens, outside 1 to 576")
    both = Fallback(first, Fake("torch", 2), allowed=True)
    assert both.unsupported(STEP) is None
    for _ in range(2):
        assert float(both.predict(STEP)) == 2
        assert both.drain() == StepReport("torch", "600 tokens, outside 1 to 576")
    assert first.asked == 0
    assert both.fallback_steps == 2
    first.refuses = None
    assert float(both.predict(STEP)) == 1
    assert both.drain() == StepReport("tensorrt")


def test_one_that_failed_is_not_asked_again() -> None:
    first = Fake("tensorrt", 1, fails=True)
    both = Fallback(first, Fake("torch", 2), allowed=True)
    for _ in range(3):
        assert float(both.predict(STEP)) == 2
        assert both.drain() == StepReport("torch", "out of memory")
    assert first.asked == 1
    assert both.fallback_steps == 3


def test_where_falling_back_is_forbidden_it_is_an_error() -> None:
    both = Fallback(Fake("tensorrt", 1, refuses="too many tokens"), Fake("torch", 2), allowed=False)
    assert both.unsupported(STEP) == "too many tokens"
    with pytest.raises(
        BackendError, match="tensorrt cannot run this step: too many tokens; allow torch with"
    ):
        both.predict(STEP)
    with pytest.raises(BackendError, match="out of memory"):
        Fallback(Fake("tensorrt", 1, fails=True), Fake("torch", 2), allowed=False).predict(STEP)
    assert both.fallback_steps == 0


def test_one_that_could_not_be_made_says_why() -> None:
    both = Fallback(Unavailable("tensorrt", "no CUDA device"), Fake("torch", 2), allowed=True)
    assert float(both.predict(STEP)) == 2
    assert both.drain() == StepReport("torch", "no CUDA device")
    with pytest.raises(BackendError, match="no CUDA device"):
        Unavailable("tensorrt", "no CUDA device").predict(STEP)


def test_closing_closes_both() -> None:
    first, second = Fake("tensorrt", 1), Fake("torch", 2)
    Fallback(first, second, allowed=True).close()
    assert first.closed
    assert second.closed
