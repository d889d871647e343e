"""Text as cross-attention reads it: keys and values of every block, and their amplification as data."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from services.denoiser.network.wan import TextKV


@dataclass(frozen=True)
class LayerAmplification:
    """Amplified cross-attention of one block; a `CrossAttention`.

    Attributes:
        bias: Bias of the logits of the text keys, [L].
        other: Keys and values of another text, [B, heads, M, head_dim] each.
        strength: Factor with which the difference from the other text's output is added.
        gate: Factor of each video token's bias or difference, [N], 0 to 1; None means 1.
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
    """Input of cross-attention: keys and values of every block, and the blocks' amplification."""

    kv: TextKV
    layers: tuple[LayerAmplification | None, ...] | None = None
