"""The port: one prediction of the network, for every or for some tokens, amplified or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from services.denoiser.network.text import AmplifiedText
from services.denoiser.network.wan import AttentionObserver

# Told of the progress of something long, in words; returns False to stop it.
Progress = Callable[[str], "bool | None"]


class BackendError(RuntimeError):
    """A backend could not be made, or failed at a step. The message says what to do."""


@contextmanager
def as_backend_error(what: str) -> Iterator[None]:
    """What goes wrong inside is a BackendError, so that another backend may stand in.

    But not a fault of the device itself: after that nothing runs on it in this process.
    """
    try:
        yield
    except (BackendError, torch.AcceleratorError):
        raise
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        raise BackendError(f"{what}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class StepInputs:
    """What the network reads in one step, on the model's device.

    Args:
        tokens: [1, n, in_channels*P] in the network's type; n is at least 1 and may be any part of a video.
        rope_cos: float32 [n, head_dim], gathered for these tokens; `rope_sin` likewise.
        text: keys and values of every block, and what is done to them.
        timestep: float32 [1], 1000 * sigma.
        on_attention: told of cross-attention's queries and keys.
    """

    tokens: Tensor
    rope_cos: Tensor
    rope_sin: Tensor
    text: AmplifiedText
    timestep: Tensor
    on_attention: AttentionObserver | None = None


class Backend(ABC):
    """Runs the network. Not thread-safe: the device's thread owns it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As the settings spell it."""

    @abstractmethod
    def unsupported(self, inputs: StepInputs) -> str | None:
        """Why this backend cannot run these inputs; None where it can."""

    @abstractmethod
    def predict(self, inputs: StepInputs) -> Tensor:
        """The network's prediction [1, n, out_channels*P]. Raises BackendError."""

    @property
    def fallback_steps(self) -> int:
        """Steps that another backend ran in this one's place, since it was made."""
        return 0

    def drain(self) -> StepReport:
        """What ran since the last call: asked after every step, so that a response can tell."""
        return StepReport(self.name)

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Gives back what the backend holds; it is not used afterwards. May be called again."""


@dataclass(frozen=True)
class StepReport:
    """Which backend ran a step, and why not the one that was wanted; empty where it was."""

    backend: str
    fallback: str = ""
