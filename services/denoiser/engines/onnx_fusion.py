"""Self-attention in operators of onnxruntime (domain `com.microsoft`), which are faster than standard ones.

In standard operators self-attention writes its scores, [heads, n, n], to memory, and rotary positions take a
dozen nodes. The CPU kernel of `MultiHeadAttention` computes the scores block by block in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from services.denoiser.network.wan import Attention, WanTransformer


class _FusedAttention(nn.Module):
    """Replaces an `Attention` in an export; shares its parameters."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.to_out = attention.to_out
        self.norm_q, self.norm_k = attention.norm_q, attention.norm_k

    def attend_to_itself(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        # The operator's tables have one column for each pair of channels, which share an angle.
        cos, sin = (table[0, :, ::2] for table in rope)
        q = self._rotate(_normalise(self.to_q(x), self.norm_q), cos, sin)
        k = self._rotate(_normalise(self.to_k(x), self.norm_k), cos, sin)
        heads = {"num_heads": self.heads}
        out = _call("com.microsoft::MultiHeadAttention", (q, k, self.to_v(x)), heads, x)
        projected: Tensor = self.to_out[0](out)
        return projected

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first = torch.zeros(1, dtype=torch.int64)
        return _call("com.microsoft::RotaryEmbedding", (x, first, cos, sin), {"interleaved": 1}, x)


def _normalise(x: Tensor, norm: nn.Module) -> Tensor:
    """Applies an RMS norm over the last dimension."""
    assert isinstance(norm, nn.RMSNorm)
    assert norm.eps is not None
    attributes = {"axis": -1, "epsilon": norm.eps, "stash_type": 1}
    return _call("SimplifiedLayerNormalization", (x, norm.weight), attributes, x)


def _call(
    operator: str, inputs: tuple[Tensor, ...], attributes: Mapping[str, int | float], x: Tensor
) -> Tensor:
    """Adds a node to the graph that is being exported; its result has the shape and type of `x`."""
    return symbolic(operator, inputs, {**attributes}, dtype=x.dtype, shape=x.shape, version=1)


def fuse_self_attention(network: WanTransformer) -> None:
    """Replaces the self-attention of every block. The network can then be exported, but not run."""
    for block in network.blocks:
        assert isinstance(block.attn1, Attention)
        block.attn1 = _FusedAttention(block.attn1)
