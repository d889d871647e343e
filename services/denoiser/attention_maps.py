"""Where the tokens of a prompt act, told by cross-attention while a step is computed.

The maps are recomputed from queries and keys beside the fused attention, which keeps no weights: for the
heads that the network lets be watched (`WanConfig.watched_heads`), and head by head, so that no more than one
head's weights are in memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class AttentionMaps:
    """Collects the attention of every video token to every text token. Give `watch` to the network.

    Args:
        tokens: how many text tokens are real; those behind them are padding, seen but not kept.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._sum: Tensor | None = None

    def watch(self, block: int, queries: Tensor, keys: Tensor) -> None:
        """queries [1, h, N, d], keys [1, h, L, d], of the watched heads of one block."""
        scale = 1 / math.sqrt(queries.shape[-1])
        for q, k in zip(queries[0], keys[0], strict=True):
            weights = torch.softmax((q @ k.T).float() * scale, dim=-1)[:, : self._tokens]
            self._sum = weights if self._sum is None else self._sum + weights

    def maps(self) -> Tensor | None:
        """[L, N], unnormalised; None when nothing was seen."""
        return None if self._sum is None else self._sum.T
