"""`torch`: the network as it is written, on any device. The reference for every other backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from services.denoiser.backends.base import Backend, StepInputs
from services.denoiser.models.wan import WanTransformer

# On Hopper cuDNN's attention is about twice as fast as the flash kernel that torch prefers; where a kernel
# does not do a mask or a head size, the next one does.
_CUDA_ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@contextmanager
def fast_attention(device: torch.device) -> Iterator[None]:
    """Inside, attention on a CUDA device takes the fastest kernel that can; elsewhere nothing changes."""
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel(_CUDA_ATTENTION, set_priority=True):
        yield


class EagerBackend(Backend):
    """Runs every input there is."""

    def __init__(self, transformer: WanTransformer) -> None:
        self._transformer = transformer

    @property
    def name(self) -> str:
        return "torch"

    def unsupported(self, inputs: StepInputs) -> str | None:
        return None

    def predict(self, inputs: StepInputs) -> Tensor:
        with fast_attention(inputs.tokens.device):
            out: Tensor = self._transformer(
                inputs.tokens,
                inputs.rope_cos,
                inputs.rope_sin,
                inputs.text.kv,
                None,
                inputs.timestep,
                inputs.text.layers,
                inputs.watch,
            )
        return out
