"""Where the tokens of a prompt act, told by cross-attention while a step is computed.

The maps are recomputed from queries and keys beside the fused attention, which keeps no weights: for the few
heads that the network lets be watched (`WanConfig.watched_heads`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class AttentionMaps:
    """Collects the attention of every video token to every text token. Give `on_attention` to the network.

    Args:
        tokens: how many text tokens are real; those behind them are padding, seen but not kept.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._sum: Tensor | None = None

    def observe(self, block: int, queries: Tensor, keys: Tensor) -> None:
        """queries [1, h, N, d], keys [1, h, L, d], of the watched heads of one block."""
        scale = 1 / math.sqrt(queries.shape[-1])
        # Words first: a softmax over few words is an eighth of the time where places lie side by side.
        weights = torch.softmax((keys[0] @ queries[0].mT).float() * scale, dim=1)
        seen = weights[:, : self._tokens].sum(0)
        self._sum = seen if self._sum is None else self._sum + seen

    def maps(self) -> Tensor | None:
        """[L, N], unnormalised; None when nothing was seen."""
        return self._sum
