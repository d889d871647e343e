"""Token-Guided Attention Amplification: cross-attention that says what the target's prompt gained.

Amplification is data, not a mode. Its forms, of one block with text keys k_j and values v_j:

- contrast: A(target) + w · (A(target) − A(donor's prompt)), A being the block's attention output;
- bias: softmax(qkᵀ/√d + w·g_j), where g_j is how much token j is gained;
- value gain: v_j · (1 + w·g_j), without normalising again.

A gate over the queries, where there is one, keeps tokens outside the region as they are. With w = 0 nothing
is added at all, so that off is exactly off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from chorus.common.v1 import plan_pb2
from torch import Tensor

from services.denoiser.models.wan import TextKV

Gained = Sequence[tuple[int, float]]  # positions among the target's tokens, and weights 0 to 1


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


def amplified(
    kv: TextKV,
    amplification: plan_pb2.Amplification,
    *,
    gained: Gained = (),
    donor: TextKV | None = None,
    gate: Tensor | None = None,
) -> AmplifiedText:
    """The text of a step that is amplified.

    Args:
        gained: for bias and value gain. Positions beyond the text's tokens count nothing.
        donor: the donor's prompt, encoded by the same network: for contrast.
        gate: [n], 0 to 1, of the video tokens that the step computes; None is 1 everywhere. Values cannot be
            gated, so value gain takes none.

    Raises ValueError when contrast has no donor's prompt.
    """
    strength, form = amplification.strength, amplification.form
    contrast = form == plan_pb2.AMPLIFICATION_FORM_CONTRAST
    if strength == 0 or not (contrast or gained):
        return AmplifiedText(kv)
    if contrast and donor is None:
        raise ValueError("amplification: contrast needs the token states of the donor's prompt")
    first = amplification.first_layer
    keys = kv[0][0]
    weights = _per_token(gained, keys.shape[2]).to(keys)
    if form == plan_pb2.AMPLIFICATION_FORM_VALUE_GAIN:
        gain = (1 + strength * weights)[:, None]
        return AmplifiedText(tuple((k, v * gain if i >= first else v) for i, (k, v) in enumerate(kv)))
    layers: list[LayerAmplification | None] = []
    for i in range(len(kv)):
        if i < first:
            layers.append(None)
        elif contrast:
            assert donor is not None
            layers.append(LayerAmplification(other=donor[i], strength=strength, gate=gate))
        else:
            layers.append(LayerAmplification(bias=strength * weights, gate=gate))
    return AmplifiedText(kv, tuple(layers))


def applies(amplification: plan_pb2.Amplification | None, step: int) -> bool:
    """Whether a step is amplified."""
    if amplification is None or amplification.strength == 0:
        return False
    last = amplification.last_step
    return last == 0 or amplification.first_step <= step < last


def _per_token(gained: Gained, count: int) -> Tensor:
    weights = torch.zeros(count)
    for position, weight in gained:
        if position < count:
            weights[position] = weight
    return weights
