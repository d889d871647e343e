"""`torch` backend: the network as written, on any device. The reference for every other backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from services.denoiser.backends.base import Backend, StepInputs
from services.denoiser.kernels.cross_attention import build_kernel_attention
from services.denoiser.network.wan import CrossAttention, WanTransformer

# Order of preference. On Hopper cuDNN's attention is about twice as fast as the flash kernel that torch
# prefers; torch takes the next kernel when one does not support a mask or a head size.
_CUDA_ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@contextmanager
def fast_attention(device: torch.device) -> Iterator[None]:
    """Selects the fastest applicable attention kernel on a CUDA device. It has no effect on other devices."""
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel(_CUDA_ATTENTION, set_priority=True):
        yield


class EagerBackend(Backend):
    """Runs the network in eager mode. Supports every input.

    Args:
        kernel: Runs amplified cross-attention through the operator `chorus::amplified_attention`: on a CUDA
            device one kernel, for which torch needs two attentions and a mask over tokens and words.
    """

    def __init__(self, transformer: WanTransformer, *, kernel: bool = False) -> None:
        self._transformer, self._kernel = transformer, kernel

    @property
    def name(self) -> str:
        return "torch"

    def unsupported_reason(self, inputs: StepInputs) -> str | None:
        return None

    def predict(self, inputs: StepInputs) -> Tensor:
        amplified = inputs.text.layers
        layers: Sequence[CrossAttention | None] | None = amplified
        if self._kernel and amplified is not None:
            layers = build_kernel_attention(amplified)
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
