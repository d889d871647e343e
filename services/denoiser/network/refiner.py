"""Refines the token states of a general text encoder before the network reads them.

A sentence encoder mixes what its words say about different things. A small transformer, trained to tell which
words belong together, adds that to each state, so that the network need not learn it from videos. Wan has no
such part; HunyuanVideo's token refiner (arXiv 2412.03603) is alike.
"""

from __future__ import annotations

from torch import Tensor, nn

_LAYER_NORM_EPS = 1e-5


class TextRefiner(nn.Module):
    """Transformer over the tokens of one prompt, whose output is added to their states."""

    def __init__(self, text_dim: int, dim: int, heads: int, layers: int) -> None:
        """Creates the network.

        Args:
            text_dim: Size of a token state.
            dim, heads, layers: Size of the transformer.
        """
        super().__init__()
        self.norm_in = nn.LayerNorm(text_dim, _LAYER_NORM_EPS)
        self.proj_in = nn.Linear(text_dim, dim)
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, 0.0, "gelu", _LAYER_NORM_EPS, batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(dim, _LAYER_NORM_EPS)
        self.encoder = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)
        self.proj_out = nn.Linear(dim, text_dim)

    def forward(self, states: Tensor, padding: Tensor | None = None) -> Tensor:
        """Refines token states, [B, L, text_dim] -> [B, L, text_dim].

        Args:
            padding: Whether each token is padding, bool [B, L]; no token by default.
        """
        x = self.proj_in(self.norm_in(states))
        refined: Tensor = states + self.proj_out(self.encoder(x, src_key_padding_mask=padding))
        return refined
