"""Amplified cross-attention through the operator: both texts and the gate in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from services.denoiser.kernels.op import amplified_attention
from services.denoiser.network.text import LayerAmplification
from services.denoiser.network.wan import CrossAttention


def build_kernel_attention(layers: Sequence[LayerAmplification | None]) -> list[CrossAttention | None]:
    """Returns cross-attention functions that apply the amplifications with `chorus::amplified_attention`."""
    return [None if layer is None else partial(_attend, layer) for layer in layers]


def _attend(layer: LayerAmplification, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Implements `CrossAttention` for one layer; `bias` is [B, 1, 1, L] or None."""
    batch, _, tokens, _ = q.shape
    keys = k.shape[2]
    zeros = torch.zeros(batch, keys, device=q.device)
    other_k, other_v = (k[:, :, :0], v[:, :, :0]) if layer.other is None else layer.other
    gate = torch.ones(tokens, device=q.device) if layer.gate is None else layer.gate.float()
    out: Tensor = amplified_attention(
        q,
        k,
        v,
        zeros if bias is None else bias[:, 0, 0].float(),
        zeros if layer.bias is None else layer.bias.float().expand(batch, keys).contiguous(),
        gate.expand(batch, tokens).contiguous(),
        other_k,
        other_v,
        torch.zeros(batch, other_k.shape[2], device=q.device),
        torch.full((batch,), layer.strength, device=q.device),
    )
    return out
