"""`compiled` backend: torch.compile applied to one block, for any number of tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from services.denoiser.backends.base import BackendError
from services.denoiser.backends.graph import GraphPart, split_into_parts
from services.denoiser.backends.graph_backend import GraphBackend, PartRunner
from services.denoiser.network.wan import Block, CrossAttention, WanTransformer

# block, x, modulation, rope, text, bias, cross-attention function -> x and the queries of cross-attention
_Run = Callable[..., tuple[Tensor, Tensor]]


class _CompiledBlock(nn.Module):
    """Replaces a `Block` and runs the code compiled for all blocks."""

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
    # Queries of every block are returned: returning only those of watched blocks would compile each kind
    # separately.
    queries: list[Tensor] = []
    x = block(x, modulation, rope, text, key_bias, amplify, lambda q, _: queries.append(q))
    return x, queries[0]


def _with_compiled_blocks(transformer: WanTransformer) -> WanTransformer:
    """Returns a copy of the network with compiled blocks and shared parameters. The original is unchanged."""
    # One compilation serves any number of tokens, because the size of a region differs in every step, and all
    # blocks, because unrolling the whole network takes minutes to compile and runs the same kernels.
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
    """Creates the backend. The first step with each number of texts compiles for about half a minute."""
    network = _with_compiled_blocks(transformer)
    runners = [_CompiledPart(part) for part in split_into_parts(network, 0)]
    return GraphBackend("compiled", transformer, 0, runners)
