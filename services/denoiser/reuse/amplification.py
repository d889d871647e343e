"""Token-Guided Attention Amplification: stronger cross-attention to what the target's prompt gained.

Amplification is data, not a mode. Its forms, of one block with text keys k_j and values v_j:

- contrast: A(target) + w · (A(target) − A(donor's prompt)), A being the block's attention output;
- bias: softmax(qkᵀ/√d + w·g_j), where g_j is the weight of gained token j;
- value gain: v_j · (1 + w·g_j), without normalising again.

An optional gate over the queries leaves tokens outside the region unchanged. With w = 0 nothing is added, so
that disabled amplification leaves the result bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from chorus.common.v1 import plan_pb2
from torch import Tensor

from services.denoiser.network.text import AmplifiedText, LayerAmplification
from services.denoiser.network.wan import TextKV

Gained = Sequence[tuple[int, float]]  # positions in the target's prompt, and weights from 0 to 1
# Returns the text that cross-attention reads in a step, for the tokens at the computed positions [n]; None
# means all.
StepText: TypeAlias = Callable[[int, Tensor | None], AmplifiedText]


def plan_text(kv: TextKV, plan: plan_pb2.Plan, donor: TextKV | None) -> StepText:
    """Returns the text of each step as the plan amplifies it.

    Args:
        donor: The donor's prompt, encoded; needed for contrast.
    """
    plain = AmplifiedText(kv)
    gained = [(token.index, token.weight) for token in plan.gained]

    def text(step: int, positions: Tensor | None) -> AmplifiedText:
        if not amplifies(plan.amplification, step):
            return plain
        return amplify_text(kv, plan.amplification, gained=gained, donor=donor)

    return text


def amplify_text(
    kv: TextKV,
    amplification: plan_pb2.Amplification,
    *,
    gained: Gained = (),
    donor: TextKV | None = None,
    gate: Tensor | None = None,
) -> AmplifiedText:
    """Returns the amplified text of one step.

    Args:
        gained: Gained tokens, used by bias and value gain. Positions past the last text token are ignored.
        donor: Donor's prompt, encoded by the same network; used by contrast.
        gate: Factor [n] in 0 to 1 for each video token that the step computes; None means 1. Value gain
            ignores it, because values belong to text tokens.

    Raises ValueError for contrast without the donor's prompt.
    """
    strength, form = amplification.strength, amplification.form
    contrast = form == plan_pb2.AMPLIFICATION_FORM_CONTRAST
    if strength == 0 or not (contrast or gained):
        return AmplifiedText(kv)
    if contrast and donor is None:
        raise ValueError("amplification: contrast needs the token states of the donor's prompt")
    first = amplification.first_layer
    keys = kv[0][0]
    weights = _weights_per_token(gained, keys.shape[2]).to(keys)
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


def amplifies(amplification: plan_pb2.Amplification | None, step: int) -> bool:
    """Returns whether a step is amplified."""
    if amplification is None or amplification.strength == 0:
        return False
    end = amplification.end_step
    return end == 0 or amplification.first_step <= step < end


def _weights_per_token(gained: Gained, count: int) -> Tensor:
    weights = torch.zeros(count)
    for position, weight in gained:
        if position < count:
            weights[position] = weight
    return weights
