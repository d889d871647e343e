"""Backend interface: one network prediction for all tokens or a subset, with or without amplification."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from services.denoiser.network.text import AmplifiedText
from services.denoiser.network.wan import AttentionObserver

# Progress callback for long operations; it receives a message. Return False to cancel.
Progress = Callable[[str], "bool | None"]


class BackendError(RuntimeError):
    """Failure to create a backend, or to run a step on it. The message names the remedy."""


@contextmanager
def as_backend_error(operation: str) -> Iterator[None]:
    """Converts errors raised inside to BackendError, so that another backend can take over.

    Errors of the device itself are not converted: no backend can use the device in this process afterwards.

    Args:
        operation: Name of the operation, the start of the message.
    """
    try:
        yield
    except (BackendError, torch.AcceleratorError):
        raise
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        raise BackendError(f"{operation}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class StepInputs:
    """Inputs of the network for one step, on the model's device.

    Attributes:
        tokens: Any subset of a video's tokens, [1, n, in_channels*P] in the network's type, n at least 1.
        rope_cos: Cosines of the rotary position table for these tokens, float32 [n, head_dim].
        rope_sin: Its sines, float32 [n, head_dim].
        text: Keys and values of every block, and their amplification.
        timestep: 1000 * sigma, float32 [1].
        on_attention: Observer of the queries and keys of cross-attention.
    """

    tokens: Tensor
    rope_cos: Tensor
    rope_sin: Tensor
    text: AmplifiedText
    timestep: Tensor
    on_attention: AttentionObserver | None = None


class Backend(ABC):
    """Runs the network. It is not thread-safe: the device thread owns it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the backend in the settings."""

    @abstractmethod
    def unsupported_reason(self, inputs: StepInputs) -> str | None:
        """Returns the reason why this backend cannot run these inputs, or None if it can."""

    @abstractmethod
    def predict(self, inputs: StepInputs) -> Tensor:
        """Returns the network's prediction [1, n, out_channels*P]. Raises BackendError."""

    @property
    def fallback_steps(self) -> int:
        """Number of steps that another backend ran in place of this one."""
        return 0

    def drain(self) -> StepReport:
        """Returns and resets the report of the last step. Called after every step."""
        return StepReport(self.name)

    def close(self) -> None:  # noqa: B027  most backends hold no resources
        """Releases the backend's resources. The backend is unusable afterwards. Idempotent."""


@dataclass(frozen=True)
class StepReport:
    """Backend that ran a step.

    Attributes:
        backend: Name of the backend that ran the step.
        fallback: Reason why the configured backend did not run it; empty if it did.
    """

    backend: str
    fallback: str = ""
