"""The network with everything that changes from step to step as a tensor: for compilers and engines.

Amplification is data, not a mode: its strength changes without a new engine. Texts are an axis, 1 or 2 long:
the target's prompt, and for contrast the donor's. That is one attention, one fused kernel. Two attentions, to
texts with lengths of their own, were not: TensorRT-RTX merged the products of the queries with both texts'
keys, and what was left was no longer fused.

Shapes: n tokens, K layers, T texts, L text tokens, H heads, d head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.denoiser.kernels.op import amplified_attention
from services.denoiser.network.text import AmplifiedText
from services.denoiser.network.wan import AttentionObserver, CrossAttention, WanTransformer

# Added to the logits of padding: e to its power is 0 in float32, and it is a number in float16 and bfloat16,
# so that no kernel subtracts infinity from infinity.
HIDDEN = -30_000.0

TEXT_INPUTS = ("text_kv", "key_bias", "strength", "gate", "gained")


@dataclass(frozen=True)
class GraphText:
    """What cross-attention reads, as the graph takes it.

    Args:
        text_kv: [K, 2, T, H, L, d], keys and values, value gains folded in, in the network's type.
        key_bias: float32 [K, T, L], added to the logits.
        strength: float32 [K], how much of the difference between the two texts is added.
        gate: float32 [n], by which each token's difference is multiplied, and its share of `gained`.
        gained: float32 [K, L], added to the first text's logits by each token's gate; the plugin's alone.
    """

    text_kv: Tensor
    key_bias: Tensor
    strength: Tensor
    gate: Tensor
    gained: Tensor


def unsupported_text(text: AmplifiedText, plugin: bool = False) -> str | None:
    """Why the graph cannot do an amplification; None where it can. With the plugin it can do more."""
    for layer in text.layers or ():
        if not plugin and layer is not None and layer.bias is not None and layer.gate is not None:
            return (
                "a bias gated by token would need a mask over tokens and words; the plugin's graph has it not"
            )
    gates = {id(layer.gate) for layer in text.layers or () if layer is not None}
    return "layers with different gates" if len(gates) > 1 else None


def graph_text(text: AmplifiedText, tokens: int) -> GraphText:
    """Stacks a text, which the graph has to support."""
    layers = text.layers or (None,) * len(text.kv)
    device = text.kv[0][0].device
    others = [None if layer is None else layer.other for layer in layers]
    length = max([text.kv[0][0].shape[2], *(other[0].shape[2] for other in others if other is not None)])
    contrast = any(other is not None for other in others)

    def padded(x: Tensor) -> Tensor:
        return F.pad(x[0], (0, 0, 0, length - x.shape[2]))

    def bias_of(keys: Tensor, more: Tensor | None) -> Tensor:
        row = torch.full((length,), HIDDEN, device=device)
        row[: keys.shape[2]] = 0.0 if more is None else more.float()
        return row

    kv, bias, gained = [], [], torch.zeros(len(text.kv), length, device=device)
    for i, (own, other, layer) in enumerate(zip(text.kv, others, layers, strict=True)):
        texts = [own, other or own] if contrast else [own]
        kv.append(torch.stack([torch.stack([padded(t[part]) for t in texts]) for part in (0, 1)]))
        more = None if layer is None else layer.bias
        if layer is not None and more is not None and layer.gate is not None:
            gained[i, : len(more)], more = more.float(), None
        bias.append(torch.stack([bias_of(t[0], more if t is own else None) for t in texts]))
    gate = next((layer.gate for layer in layers if layer is not None and layer.gate is not None), None)
    strength = [layer.strength if layer is not None and layer.other is not None else 0.0 for layer in layers]
    return GraphText(
        torch.stack(kv),
        torch.stack(bias),
        torch.tensor(strength, device=device),
        torch.ones(tokens, device=device) if gate is None else gate.float(),
        gained,
    )


def _contrast(
    key_bias: Tensor, weight: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
) -> Tensor:
    """One attention over the texts' axis, and the difference of its two ends; with one text that is 0.

    q [1, H, n, d], k and v [T, H, L, d], key_bias [T, L], weight [n] -> [1, H, n, d].
    """
    texts = k.shape[0]
    mask = key_bias[:, None, None, :].to(q.dtype)
    every = F.scaled_dot_product_attention(q.expand(texts, -1, -1, -1), k, v, attn_mask=mask)
    own, other = every[:1], every[texts - 1 :]
    return own + weight[:, None].to(q.dtype) * (own - other)


def _plugin(
    key_bias: Tensor,
    gained: Tensor,
    strength: Tensor,
    gate: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """The same by our own operator, in one pass over both texts; it gates the bias by token as well.

    Args as `_contrast`, and gained [L], strength [], gate [n].
    """
    last = k.shape[0] - 1
    made: Tensor = amplified_attention(
        q,
        k[:1],
        v[:1],
        key_bias[:1],
        gained[None],
        gate[None],
        k[last:],
        v[last:],
        key_bias[last:],
        strength[None],
    )
    return made


class GraphPart(nn.Module):
    """Some blocks in a row with what comes before the first or after the last: a whole network, or a part.

    Args of `forward`, in the order of `inputs`; returns the tensors named by `outputs`:
        tokens, timestep: of the first part.
        x, modulation: of the others, as `WanTransformer.begin` makes them; embedding: of the last of them.
        rope_cos, rope_sin: float32 [n, d].
        text_kv, key_bias, strength, gate: as in `GraphText`, of these blocks; with the plugin gained as well.
        queries: [h, n, d], of this part's watched heads.
    """

    def __init__(self, transformer: WanTransformer, blocks: range, *, plugin: bool = False) -> None:
        super().__init__()
        layers = transformer.config.layers
        if not 0 <= blocks.start < blocks.stop <= layers:
            raise ValueError(f"blocks: must be some of 0 to {layers - 1}, not {blocks}")
        self.transformer, self.blocks, self.plugin = transformer, blocks, plugin
        self.first, self.last = blocks.start == 0, blocks.stop == layers
        self.watched = {b: h for b, h in transformer.config.watched_heads.items() if b in blocks}

    @property
    def inputs(self) -> tuple[str, ...]:
        if self.first:
            before: tuple[str, ...] = ("tokens", "timestep")
        else:
            before = ("x", "modulation", "embedding") if self.last else ("x", "modulation")
        return (*before, "rope_cos", "rope_sin", *(TEXT_INPUTS if self.plugin else TEXT_INPUTS[:-1]))

    @property
    def outputs(self) -> tuple[str, ...]:
        after: tuple[str, ...] = ("prediction",) if self.last else ("x_out",)
        if self.first and not self.last:
            after += ("modulation_out", "embedding_out")
        return (*after, "queries") if self.watched else after

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.inputs, args, strict=True))
        if self.first:
            x, modulation, embedding = self.transformer.begin(named["tokens"], named["timestep"])
        else:
            x, modulation = named["x"], named["modulation"]
            embedding = named.get("embedding", modulation)
        rope = (named["rope_cos"].unsqueeze(-3), named["rope_sin"].unsqueeze(-3))
        text_kv = named["text_kv"]
        rules = [self._rule(named, i) for i in range(len(self.blocks))]
        kv = tuple((text_kv[i, 0], text_kv[i, 1]) for i in range(len(self.blocks)))
        queries: list[Tensor] = []
        x = self.transformer.run_blocks(
            self.blocks, x, modulation, rope, kv, None, rules, lambda _, q, __: queries.append(q[0])
        )
        out: tuple[Tensor, ...] = (self.transformer.end(x, embedding) if self.last else x,)
        if self.first and not self.last:
            out += (modulation, embedding)
        return (*out, torch.cat(queries)) if queries else out

    def _rule(self, named: Mapping[str, Tensor], i: int) -> CrossAttention:
        """How the i-th of these blocks attends to the texts."""
        bias, strength, gate = named["key_bias"][i], named["strength"][i], named["gate"]
        if self.plugin:
            return partial(_plugin, bias, named["gained"][i], strength, gate)
        return partial(_contrast, bias, strength * gate)


def parts_of(transformer: WanTransformer, blocks_each: int, *, plugin: bool = False) -> list[GraphPart]:
    """The network in parts of so many blocks; 0 is one part."""
    layers = transformer.config.layers
    each = blocks_each or layers
    return [
        GraphPart(transformer, range(first, min(first + each, layers)), plugin=plugin)
        for first in range(0, layers, each)
    ]


def report_attention(
    watched: dict[int, list[int]], queries: Tensor, text: AmplifiedText, on_attention: AttentionObserver
) -> None:
    """Hands a graph's `queries` [h, n, d] to a `AttentionObserver`, as the network itself would."""
    first = 0
    for block, heads in watched.items():
        on_attention(block, queries[None, first : first + len(heads)], text.kv[block][0][:, heads])
        first += len(heads)
