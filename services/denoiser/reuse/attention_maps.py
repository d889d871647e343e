"""Attention maps: where the tokens of a prompt act, recorded while a step is computed.

The maps are recomputed from queries and keys, because the fused attention keeps no weights, and only for a
few heads (`WanConfig.watched_heads`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class AttentionMaps:
    """Sums the attention of every video token to every text token. Pass `observe` as an AttentionObserver.

    Args:
        tokens: Number of text tokens before the padding; attention to the padding is not kept.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._sum: Tensor | None = None

    def observe(self, block: int, queries: Tensor, keys: Tensor) -> None:
        """Adds the attention of one block.

        Args:
            queries: [1, h, N, d], of the observed heads.
            keys: [1, h, L, d].
        """
        scale = 1 / math.sqrt(queries.shape[-1])
        # Text tokens come first: a softmax over them takes an eighth of the time if places are contiguous.
        weights = torch.softmax((keys[0] @ queries[0].mT).float() * scale, dim=1)
        attention = weights[:, : self._tokens].sum(0)
        self._sum = attention if self._sum is None else self._sum + attention

    def maps(self) -> Tensor | None:
        """Returns the maps, [L, N], not normalised; None if no attention was observed."""
        return self._sum
