"""Text as cross-attention reads it: keys and values of every block, and their amplification as data."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from services.denoiser.network.wan import TextKV


@dataclass(frozen=True)
class LayerAmplification:
    """What one block's cross-attention does besides attending to the text: a `CrossAttention`.

    Args:
        bias: [L], added to the logits of the text keys.
        other: keys and values of another text, [B, heads, M, head_dim] each.
        strength: how much of the difference from that text's output is added to this one's.
        gate: [N] in 0..1, by which each video token's bias or difference is multiplied; None is 1.
    """

    bias: Tensor | None = None
    other: tuple[Tensor, Tensor] | None = None
    strength: float = 0.0
    gate: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if self.bias is not None:
            more = self.bias if self.gate is None else self.gate[:, None] * self.bias
            more = more.to(q.dtype).reshape(1, 1, -1, more.shape[-1])
            bias = more if bias is None else bias + more
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if self.other is None:
            return out
        change = self.strength * (out - F.scaled_dot_product_attention(q, *self.other))
        return out + (change if self.gate is None else change * self.gate[:, None].to(q.dtype))


@dataclass(frozen=True)
class AmplifiedText:
    """What cross-attention reads: every block's keys and values, and what is done to them."""

    kv: TextKV
    layers: tuple[LayerAmplification | None, ...] | None = None
