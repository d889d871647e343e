"""One backend in place of another that cannot run a step."""

from __future__ import annotations

from torch import Tensor

from services.denoiser.backends.base import Backend, BackendError, StepInputs, StepReport


class Unavailable(Backend):
    """Stands for a backend that could not be made: it runs nothing, and says why."""

    def __init__(self, name: str, reason: str) -> None:
        self._name, self._reason = name, reason

    @property
    def name(self) -> str:
        return self._name

    def unsupported(self, inputs: StepInputs) -> str | None:
        return self._reason

    def predict(self, inputs: StepInputs) -> Tensor:
        raise BackendError(self._reason)


class Fallback(Backend):
    """The first backend where it can, the second where it cannot.

    Args:
        allowed: where it is not, what the first cannot run is an error.
    """

    def __init__(self, first: Backend, second: Backend, *, allowed: bool) -> None:
        self._first, self._second, self._allowed = first, second, allowed
        self._broken = ""
        self._report = StepReport(first.name)
        self._fallback_steps = 0

    @property
    def name(self) -> str:
        return self._first.name

    @property
    def fallback_steps(self) -> int:
        return self._fallback_steps

    def unsupported(self, inputs: StepInputs) -> str | None:
        return self._second.unsupported(inputs) if self._allowed else self._first.unsupported(inputs)

    def predict(self, inputs: StepInputs) -> Tensor:
        reason = self._broken or self._first.unsupported(inputs)
        if not reason:
            try:
                return self._first.predict(inputs)
            except BackendError as error:
                if not self._allowed:
                    raise
                # An engine that failed once is not asked again: it would fail in every step of every run.
                reason = self._broken = str(error)
                self._first.close()
        if not self._allowed:
            raise BackendError(
                f"{self._first.name} cannot run this step: {reason}; "
                f"allow {self._second.name} with CHORUS_DENOISER_BACKEND_FALLBACK=true"
            )
        self._fallback_steps += 1
        self._report = StepReport(self._second.name, reason)
        return self._second.predict(inputs)

    def drain(self) -> StepReport:
        report, self._report = self._report, StepReport(self._first.name)
        return report

    def close(self) -> None:
        self._first.close()
        self._second.close()
