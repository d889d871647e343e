"""Fallback from a backend that cannot run a step to another one."""

from __future__ import annotations

from torch import Tensor

from services.denoiser.backends.base import Backend, BackendError, StepInputs, StepReport


class Unavailable(Backend):
    """Placeholder for a backend that could not be created. Rejects every step with the reason."""

    def __init__(self, name: str, reason: str) -> None:
        self._name, self._reason = name, reason

    @property
    def name(self) -> str:
        return self._name

    def unsupported_reason(self, inputs: StepInputs) -> str | None:
        return self._reason

    def predict(self, inputs: StepInputs) -> Tensor:
        raise BackendError(self._reason)


class Fallback(Backend):
    """Runs a step on the primary backend, or on the secondary one if the primary cannot.

    A primary backend that failed once is closed and not used again.

    Args:
        allowed: Whether the secondary backend may run steps. If False, a step that the primary backend
            cannot run raises BackendError.
    """

    def __init__(self, primary: Backend, secondary: Backend, *, allowed: bool) -> None:
        self._primary, self._secondary, self._allowed = primary, secondary, allowed
        self._failure = ""
        self._report = StepReport(primary.name)
        self._fallback_steps = 0

    @property
    def name(self) -> str:
        return self._primary.name

    @property
    def fallback_steps(self) -> int:
        return self._fallback_steps

    def unsupported_reason(self, inputs: StepInputs) -> str | None:
        backend = self._secondary if self._allowed else self._primary
        return backend.unsupported_reason(inputs)

    def predict(self, inputs: StepInputs) -> Tensor:
        reason = self._failure or self._primary.unsupported_reason(inputs)
        if not reason:
            try:
                return self._primary.predict(inputs)
            except BackendError as error:
                if not self._allowed:
                    raise
                # No retry after a failure: an engine that failed once would fail in every step of every run.
                reason = self._failure = str(error)
                self._primary.close()
        if not self._allowed:
            raise BackendError(
                f"{self._primary.name} cannot run this step: {reason}; "
                f"allow {self._secondary.name} with CHORUS_DENOISER_BACKEND_FALLBACK=true"
            )
        self._fallback_steps += 1
        self._report = StepReport(self._secondary.name, reason)
        return self._secondary.predict(inputs)

    def drain(self) -> StepReport:
        report, self._report = self._report, StepReport(self._primary.name)
        return report

    def close(self) -> None:
        self._primary.close()
        self._secondary.close()
