"""An amplified block's cross-attention through the operator: both texts and the gate in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from services.denoiser.kernels.op import amplified_attention
from services.denoiser.network.text import LayerAmplification
from services.denoiser.network.wan import CrossAttention


def through_kernel(layers: Sequence[LayerAmplification | None]) -> list[CrossAttention | None]:
    """The same amplifications, by `chorus::amplified_attention`."""
    return [None if layer is None else partial(_attend, layer) for layer in layers]


def _attend(layer: LayerAmplification, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """A `CrossAttention`; `bias` is [B, 1, 1, L] or None."""
    batch, _, tokens, _ = q.shape
    keys = k.shape[2]
    none = torch.zeros(batch, keys, device=q.device)
    other_k, other_v = (k[:, :, :0], v[:, :, :0]) if layer.other is None else layer.other
    gate = torch.ones(tokens, device=q.device) if layer.gate is None else layer.gate.float()
    made: Tensor = amplified_attention(
        q,
        k,
        v,
        none if bias is None else bias[:, 0, 0].float(),
        none if layer.bias is None else layer.bias.float().expand(batch, keys).contiguous(),
        gate.expand(batch, tokens).contiguous(),
        other_k,
        other_v,
        torch.zeros(batch, other_k.shape[2], device=q.device),
        torch.full((batch,), layer.strength, device=q.device),
    )
    return made
