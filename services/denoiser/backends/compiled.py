"""`compiled`: the graph through torch's compiler, one block at a time, for any number of tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from services.denoiser.backends.base import BackendError
from services.denoiser.backends.graph import GraphPart, parts_of
from services.denoiser.backends.graph_backend import GraphBackend, PartRunner
from services.denoiser.network.wan import Block, CrossAttention, WanTransformer

# x, modulation, rope, text, bias, cross-attention's rule -> x and cross-attention's queries
_Run = Callable[..., tuple[Tensor, Tensor]]


class _CompiledBlock(nn.Module):
    """A `Block` that runs what was compiled for all of them."""

    def __init__(self, block: Block, run: _Run) -> None:
        super().__init__()
        self.block, self._run = block, run

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rope: tuple[Tensor, Tensor],
        text: tuple[Tensor, Tensor],
        key_bias: Tensor | None,
        amplify: CrossAttention | None = None,
        on_attention: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        x, queries = self._run(self.block, x, modulation, rope, text, key_bias, amplify)
        if on_attention is not None:
            on_attention(queries, text[0])
        return x


def _run_block(
    block: Block,
    x: Tensor,
    modulation: Tensor,
    rope: tuple[Tensor, Tensor],
    text: tuple[Tensor, Tensor],
    key_bias: Tensor | None,
    amplify: CrossAttention | None,
) -> tuple[Tensor, Tensor]:
    # Queries are returned of every block: were the watched ones alone returned, each would be compiled apart.
    queries: list[Tensor] = []
    x = block(x, modulation, rope, text, key_bias, amplify, lambda q, _: queries.append(q))
    return x, queries[0]


def _with_compiled_blocks(transformer: WanTransformer) -> WanTransformer:
    """The same network and parameters with compiled blocks; the one given stays as it is."""
    # One compilation for any number of tokens and words, for a region's size differs in every step, and for
    # all blocks: the whole network unrolled takes minutes to compile and runs the same kernels.
    run: _Run = torch.compile(_run_block, dynamic=True)
    network = copy.copy(transformer)
    network._modules = dict(transformer._modules)
    network.blocks = nn.ModuleList(_CompiledBlock(block, run) for block in transformer.blocks)  # type: ignore[arg-type]
    return network


class _CompiledPart(PartRunner):
    def __init__(self, part: GraphPart) -> None:
        self._part = part

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        try:
            out = self._part(*(inputs[name] for name in self._part.inputs))
        except torch._dynamo.exc.TorchDynamoException as error:
            raise BackendError(f"torch.compile failed: {error}") from error
        return dict(zip(self._part.outputs, out, strict=True))


def compiled_backend(transformer: WanTransformer) -> GraphBackend:
    """Compiles a block at the first step of each number of texts, which takes half a minute or so."""
    network = _with_compiled_blocks(transformer)
    return GraphBackend("compiled", transformer, 0, [_CompiledPart(part) for part in parts_of(network, 0)])
