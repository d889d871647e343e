"""Amplified attention in plain torch: what the kernel has to compute, and what runs on a CPU."""

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
    """A + strength · gate · (A − A′): attention to a text, away from attention to another one.

    A = softmax(qkᵀ/√d + key_bias + gate · gained) · v and A′ = softmax(qk′ᵀ/√d + other_bias) · v′. A query
    that may see no key gets 0. Computed in float64 where q is float64, else in float32.

    Args:
        q: [B, H, N, d].
        k, v: [B, H, L, d].
        key_bias: [B, L], float32; -inf hides a key.
        gained: [B, L], float32, finite: how much more a key counts where the gate is open.
        gate: [B, N], float32, 0 to 1.
        other_k, other_v: [B, H, M, d]; with M = 0 there is no other text, and A is returned.
        other_bias: [B, M], float32; -inf hides a key.
        strength: [B], float32.

    Returns [B, H, N, d] of q's type. Source: both forms of services/denoiser/network/text.py at once.
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
    blind = (logits == -torch.inf).all(-1, keepdim=True)  # softmax would make them NaN
    out: Tensor = logits.softmax(-1).masked_fill(blind, 0) @ v
    return out
