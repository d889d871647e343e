"""Amplified attention in plain torch: defines the kernel's result, and runs on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor,
    gained: Tensor,
    gate: Tensor,
    other_k: Tensor,
    other_v: Tensor,
    other_bias: Tensor,
    strength: Tensor,
) -> Tensor:
    """Computes A + strength · gate · (A − A′): attention to one text, contrasted with another text.

    A = softmax(qkᵀ/√d + key_bias + gate · gained) · v and A′ = softmax(qk′ᵀ/√d + other_bias) · v′. The result
    is 0 for a query with every key masked. Computes in float64 if q is float64, otherwise in float32.

    Args:
        q: Queries [B, H, N, d].
        k: Keys [B, H, L, d].
        v: Values [B, H, L, d].
        key_bias: Bias of the logits of each key, float32 [B, L]; -inf masks a key.
        gained: Bias of the logits of each key in proportion to the gate, float32 [B, L], finite.
        gate: Share of `gained` and `strength` that applies to each query, float32 [B, N], 0 to 1.
        other_k: Keys of the other text [B, H, M, d]; with M = 0 the function returns A.
        other_v: Values of the other text [B, H, M, d].
        other_bias: Bias of the logits of the other text's keys, float32 [B, M]; -inf masks a key.
        strength: Weight of the difference A − A′, float32 [B].

    Returns [B, H, N, d] in the type of q. Combines both forms of services/denoiser/network/text.py.
    """
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    bias, more, rows = key_bias.to(work), gained.to(work), gate.to(work)
    query = q.to(work)
    out = _attend(
        query, k.to(work), v.to(work), bias[:, None, None] + rows[:, None, :, None] * more[:, None, None]
    )
    if other_k.shape[2]:
        other = _attend(query, other_k.to(work), other_v.to(work), other_bias.to(work)[:, None, None])
        out = out + (strength.to(work)[:, None] * rows)[:, None, :, None] * (out - other)
    return out.to(q.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    logits = q @ k.mT * q.shape[-1] ** -0.5 + bias
    masked = (logits == -torch.inf).all(-1, keepdim=True)  # softmax returns NaN for these rows
    out: Tensor = logits.softmax(-1).masked_fill(masked, 0) @ v
    return out
