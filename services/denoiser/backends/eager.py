"""`torch`: the network as it is written, on any device. The reference for every other backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from services.denoiser.backends.base import Backend, StepInputs
from services.denoiser.kernels.rule import through_kernel
from services.denoiser.network.wan import CrossAttention, WanTransformer

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
    """Runs every input there is.

    Args:
        kernel: amplified cross-attention goes through the project's own operator, which on a CUDA device is
            one kernel for what torch does in two attentions and a mask over tokens and words.
    """

    def __init__(self, transformer: WanTransformer, *, kernel: bool = False) -> None:
        self._transformer, self._kernel = transformer, kernel

    @property
    def name(self) -> str:
        return "torch"

    def unsupported(self, inputs: StepInputs) -> str | None:
        return None

    def predict(self, inputs: StepInputs) -> Tensor:
        amplified = inputs.text.layers
        layers: Sequence[CrossAttention | None] | None = amplified
        if self._kernel and amplified is not None:
            layers = through_kernel(amplified)
        with fast_attention(inputs.tokens.device):
            out: Tensor = self._transformer(
                inputs.tokens,
                inputs.rope_cos,
                inputs.rope_sin,
                inputs.text.kv,
                None,
                inputs.timestep,
                layers,
                inputs.on_attention,
            )
        return out
