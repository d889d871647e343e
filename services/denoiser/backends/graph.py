"""The network as a graph for compilers and engines: all inputs that change between steps are tensors.

Amplification is data, not a mode: its strength changes without a new engine. Texts are an axis of length 1 or
2: the target's prompt, and for contrast the donor's. One attention over this axis is one fused kernel. Two
attentions to texts of different lengths were not fused: TensorRT-RTX merged the products of the queries with
the keys of both texts, and the remaining layers did not match its fusion pattern.

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

# Added to the logits of padding. Its exponential is 0 in float32, and it is finite in float16 and bfloat16,
# so that no kernel subtracts infinity from infinity.
HIDDEN = -30_000.0

TEXT_INPUTS = ("text_kv", "key_bias", "strength", "gate", "gained")


@dataclass(frozen=True)
class GraphText:
    """Text inputs of the graph, read by cross-attention.

    Attributes:
        text_kv: Keys and values with value gains applied, [K, 2, T, H, L, d] in the network's type.
        key_bias: Bias of the logits, float32 [K, T, L].
        strength: Weight of the difference between the two texts, float32 [K].
        gate: Factor of each token for the difference and for `gained`, float32 [n].
        gained: Bias of the first text's logits, times the token's gate, float32 [K, L]. Used by the
            plugin graph only.
    """

    text_kv: Tensor
    key_bias: Tensor
    strength: Tensor
    gate: Tensor
    gained: Tensor


def unsupported_text_reason(text: AmplifiedText, plugin: bool = False) -> str | None:
    """Returns the reason why the graph cannot apply an amplification, or None if it can.

    Args:
        plugin: Whether the graph has the plugin, which supports more forms.
    """
    for layer in text.layers or ():
        if not plugin and layer is not None and layer.bias is not None and layer.gate is not None:
            return (
                "bias gated by token: needs a mask over tokens and words; only the plugin graph supports this"
            )
    gates = {id(layer.gate) for layer in text.layers or () if layer is not None}
    return "layers with different gates" if len(gates) > 1 else None


def build_graph_text(text: AmplifiedText, tokens: int) -> GraphText:
    """Stacks the layers of a text that the graph supports.

    Args:
        tokens: Number of video tokens in the step.
    """
    layers = text.layers or (None,) * len(text.kv)
    device = text.kv[0][0].device
    others = [None if layer is None else layer.other for layer in layers]
    length = max([text.kv[0][0].shape[2], *(other[0].shape[2] for other in others if other is not None)])
    contrast = any(other is not None for other in others)

    def pad(x: Tensor) -> Tensor:
        return F.pad(x[0], (0, 0, 0, length - x.shape[2]))

    def build_bias(keys: Tensor, bias: Tensor | None) -> Tensor:
        row = torch.full((length,), HIDDEN, device=device)
        row[: keys.shape[2]] = 0.0 if bias is None else bias.float()
        return row

    kv, biases, gained = [], [], torch.zeros(len(text.kv), length, device=device)
    for i, (own, other, layer) in enumerate(zip(text.kv, others, layers, strict=True)):
        texts = [own, other or own] if contrast else [own]
        kv.append(torch.stack([torch.stack([pad(t[part]) for t in texts]) for part in (0, 1)]))
        bias = None if layer is None else layer.bias
        if layer is not None and bias is not None and layer.gate is not None:
            gained[i, : len(bias)], bias = bias.float(), None
        biases.append(torch.stack([build_bias(t[0], bias if t is own else None) for t in texts]))
    gate = next((layer.gate for layer in layers if layer is not None and layer.gate is not None), None)
    strength = [layer.strength if layer is not None and layer.other is not None else 0.0 for layer in layers]
    return GraphText(
        torch.stack(kv),
        torch.stack(biases),
        torch.tensor(strength, device=device),
        torch.ones(tokens, device=device) if gate is None else gate.float(),
        gained,
    )


def _attend_contrast(
    key_bias: Tensor, weight: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
) -> Tensor:
    """Runs one attention over the text axis and adds the weighted difference of its first and last entry.

    With one text the difference is 0.

    q [1, H, n, d], k and v [T, H, L, d], key_bias [T, L], weight [n] -> [1, H, n, d].
    """
    texts = k.shape[0]
    mask = key_bias[:, None, None, :].to(q.dtype)
    out = F.scaled_dot_product_attention(q.expand(texts, -1, -1, -1), k, v, attn_mask=mask)
    own, other = out[:1], out[texts - 1 :]
    return own + weight[:, None].to(q.dtype) * (own - other)


def _attend_plugin(
    key_bias: Tensor,
    gained: Tensor,
    strength: Tensor,
    gate: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """Computes the same with the amplified attention operator, which also supports a bias gated by token.

    The arguments are those of `_attend_contrast`, and gained [L], strength [], gate [n].
    """
    last = k.shape[0] - 1
    out: Tensor = amplified_attention(
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
    return out


class GraphPart(nn.Module):
    """A range of consecutive blocks: the whole network, or one part of it.

    The first part includes the layers before the first block, the last part those after the last block.
    `forward` accepts the tensors named by `inputs` in that order and returns those named by `outputs`:

    - tokens, timestep: Inputs of the first part.
    - x, modulation: Inputs of later parts, from `WanTransformer.begin`; the last part also gets embedding.
    - rope_cos, rope_sin: Cosines and sines of the rotary position table, float32 [n, d].
    - text_kv, key_bias, strength, gate: As in `GraphText`, for these blocks; with the plugin also gained.
    - queries: Output [h, n, d], queries of this part's watched heads.
    """

    def __init__(self, transformer: WanTransformer, blocks: range, *, plugin: bool = False) -> None:
        super().__init__()
        layers = transformer.config.layers
        if not 0 <= blocks.start < blocks.stop <= layers:
            raise ValueError(f"blocks: must be a range within 0 to {layers - 1}, not {blocks}")
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
        attentions = [self._build_attention(named, i) for i in range(len(self.blocks))]
        kv = tuple((text_kv[i, 0], text_kv[i, 1]) for i in range(len(self.blocks)))
        queries: list[Tensor] = []
        x = self.transformer.run_blocks(
            self.blocks, x, modulation, rope, kv, None, attentions, lambda _, q, __: queries.append(q[0])
        )
        out: tuple[Tensor, ...] = (self.transformer.end(x, embedding) if self.last else x,)
        if self.first and not self.last:
            out += (modulation, embedding)
        return (*out, torch.cat(queries)) if queries else out

    def _build_attention(self, named: Mapping[str, Tensor], i: int) -> CrossAttention:
        """Returns the cross-attention function of the i-th block of this part."""
        bias, strength, gate = named["key_bias"][i], named["strength"][i], named["gate"]
        if self.plugin:
            return partial(_attend_plugin, bias, named["gained"][i], strength, gate)
        return partial(_attend_contrast, bias, strength * gate)


def split_into_parts(
    transformer: WanTransformer, blocks_each: int, *, plugin: bool = False
) -> list[GraphPart]:
    """Splits the network into parts.

    Args:
        blocks_each: Number of blocks in each part; 0 for a single part.
        plugin: Whether cross-attention uses the amplified attention operator.
    """
    layers = transformer.config.layers
    each = blocks_each or layers
    return [
        GraphPart(transformer, range(first, min(first + each, layers)), plugin=plugin)
        for first in range(0, layers, each)
    ]


def report_attention(
    watched: dict[int, list[int]], queries: Tensor, text: AmplifiedText, on_attention: AttentionObserver
) -> None:
    """Passes the `queries` [h, n, d] of a graph to an observer in the same calls as the network itself."""
    first = 0
    for block, heads in watched.items():
        on_attention(block, queries[None, first : first + len(heads)], text.kv[block][0][:, heads])
        first += len(heads)
